"""Shell scripts and small Unix tools, traced whole with all their children."""

from pathlib import Path

import pytest

from tests.builders.compilers import have
from tests.builders.tracing import run_plain, run_traced
from tests.integration.test_programs_own import EVERYTHING, same

SCRIPT = r"""
set -u
trap 'echo trapped USR1' USR1
trap 'echo leaving $?' EXIT
count() { local n=$1; (( n > 0 )) && count $((n - 1)); return 0; }
count 50
for i in $(seq 1 20); do ( x=$((i * i)); echo "sub $x" ); done | sort -n | tail -3
kill -USR1 $$
coproc upper { tr a-z A-Z; }
upper_pid=$upper_PID
echo hello >&"${upper[1]}"
exec {upper[1]}>&-
cat <&"${upper[0]}"
wait "$upper_pid"; echo "coproc $?"
diff <(seq 5) <(seq 2 6); echo "diff $?"
declare -A map; for word in one two three two; do map[$word]=$(( ${map[$word]:-0} + 1 )); done
for word in one two three; do echo "$word ${map[$word]}"; done
sleep 5 & pid=$!; sleep 0.2; kill $pid; wait $pid 2>/dev/null; echo "killed $?"
( trap 'echo inner; exit 9' TERM; kill -TERM $BASHPID; sleep 1 ); echo "inner $?"
while read -r a b; do printf '%s-%s\n' "$b" "$a"; done <<< $'1 2\n3 4'
[[ "abc123" =~ ^([a-z]+)([0-9]+)$ ]] && echo "${BASH_REMATCH[2]}"
x=$(bash -c 'exit 3'; echo $?); echo "exit $x"
printf 'end\n' >&2
exit 7
"""


@pytest.mark.parametrize("options", [{}, EVERYTHING, {"clock": "none"}], ids=["main", "all", "no clock"])
def test_bash(options: dict[str, object], tmp_path: Path, plan_cache: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(SCRIPT)
    plain = run_plain(["bash", script])
    assert plain.status == 7
    assert "trapped USR1" in plain.output
    assert "HELLO" in plain.output
    same(plain, run_traced(["bash", script], tmp_path / "t", plan_cache, recording=options))


def test_standard_input_reaches_the_program(tmp_path: Path, plan_cache: Path) -> None:
    text = 'echo one; read line; echo "got $line"\nsome input\n'
    plain = run_plain(["bash"], input=text)
    assert plain.output == "one\ngot some input\n"
    same(plain, run_traced(["bash"], tmp_path / "t", plan_cache, input=text))


PERL = r"""
use strict; my %count; my $text = join ' ', map { ($_ * 7) % 13 } 1..20000;
$count{$_}++ for split ' ', $text; print join(',', map { "$_=$count{$_}" } sort { $a <=> $b } keys %count), "\n";
eval { die { code => 5 } }; print "died with $@->{code}\n";
local $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; 1 while 1; }; print "caught $@";
my $pid = fork // die; if (!$pid) { print "child\n"; exit 4 } waitpid $pid, 0; print $? >> 8, "\n";
$_ = 'the quick brown fox' x 500; my $n = () = /(\w)(?=\w*\1)/g; print "$n\n"; print `echo sub`; exit 2;
"""


@pytest.mark.skipif(not have("perl"), reason="perl is not installed")
def test_perl(tmp_path: Path, plan_cache: Path) -> None:
    command = ["perl", "-e", PERL]
    plain = run_plain(command)
    assert plain.status == 2
    same(plain, run_traced(command, tmp_path / "t", plan_cache))


@pytest.mark.skipif(not have("tar", "xz", "gzip"), reason="tar, xz or gzip is not installed")
def test_tar_and_xz(tmp_path: Path, plan_cache: Path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for i in range(200):
        (files / f"file{i}").write_text(f"line {i}\n" * (i * 20))
    script = "tar -C {0} --mtime=@0 --sort=name -c files | xz -T2 -6 > {1} && xz -dc {1} | tar -t | wc -l && " \
             "xz -dc {1} | gzip -n | sha256sum && tar -tvJf {1} --utc | tail -2"  # fmt: skip
    outputs = [
        run_plain(["bash", "-c", script.format(tmp_path, tmp_path / "plain.xz")]),
        run_traced(["bash", "-c", script.format(tmp_path, tmp_path / "traced.xz")], tmp_path / "t", plan_cache),
    ]
    same(*outputs)
    assert (tmp_path / "plain.xz").read_bytes() == (tmp_path / "traced.xz").read_bytes()
    assert outputs[0].output.startswith("201\n")


@pytest.mark.skipif(not have("openssl"), reason="openssl is not installed")
def test_openssl_with_libcrypto(tmp_path: Path, plan_cache: Path) -> None:
    (tmp_path / "text").write_text("a text to sign\n" * 1000)
    script = """cd {0}
    for digest in md5 sha1 sha256 sha3-512 blake2b512; do openssl dgst -$digest text; done
    openssl enc -aes-256-cbc -pbkdf2 -S 0102030405060708 -pass pass:secret -in text | openssl dgst -sha256
    openssl enc -chacha20 -K $(printf '%064d' 7) -iv $(printf '%032d' 9) -in text | openssl dgst -sha256
    openssl genpkey -algorithm ed25519 -out key.pem && openssl pkey -in key.pem -pubout -out public.pem
    openssl pkeyutl -sign -rawin -inkey key.pem -in text -out signature
    openssl pkeyutl -verify -rawin -pubin -inkey public.pem -sigfile signature -in text
    openssl genrsa -out rsa.pem 1024 2>/dev/null && openssl rsa -in rsa.pem -check -noout 2>&1
    openssl speed -bytes 16 nonsense; echo $?"""
    command = ["bash", "-c", script.format(tmp_path)]
    plain = run_plain(command)
    assert "Verified Successfully" in plain.output
    modules = {"modules": ["openssl", "libcrypto*", "libssl*"]}
    same(plain, run_traced(command, tmp_path / "t", plan_cache, recording=modules))
