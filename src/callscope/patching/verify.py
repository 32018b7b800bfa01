"""A plan is checked before use: what moved means the same where it is now, and nothing lands inside a patch."""

from __future__ import annotations

from iced_x86 import Decoder

from callscope.binary import disassembly as dis
from callscope.errors import PlanError
from callscope.patching.code import Piece
from callscope.patching.runs import Layout, Run
from callscope.patching.text import Text


def check_pieces(text: Text, code: bytes, pieces: list[tuple[Run | None, Piece]], layout: Layout) -> None:
    """Every moved instruction decodes back to the same effect.

    Displacements in `code` are as if it lay at the image's base, so addresses compare directly. Raises PlanError.
    """
    decoder = Decoder(64, code, ip=0)
    for run, piece in pieces:
        if run is None:
            continue
        raw = text.bytes_at(run.start, run.end - run.start)
        for instruction, (address, place) in zip(Decoder(64, raw, ip=run.start), piece.moved, strict=True):
            if instruction.ip != address:
                raise PlanError(f"planning error at {address:#x}: instructions moved out of order")
            kind = dis.KINDS[instruction.code]
            if kind in dis.FALLS_THROUGH or kind == dis.STOP:
                offset = address - run.start
                if not instruction.is_ip_rel_memory_operand:
                    if code[place : place + instruction.len] != raw[offset : offset + instruction.len]:
                        raise PlanError(f"planning error at {address:#x}: an instruction changed when moved")
                    continue
                decoder.position, decoder.ip = place, place
                moved = decoder.decode()
                if moved != instruction or moved.ip_rel_memory_address != instruction.ip_rel_memory_address:
                    raise PlanError(f"planning error at {address:#x}: {instruction} became {moved}")
            elif (
                kind == dis.BRANCH
                and address not in layout.tails
                and instruction.near_branch_target not in layout.quiet
            ):
                decoder.position, decoder.ip = place, place
                moved = decoder.decode()
                same = moved.condition_code == instruction.condition_code
                if not same or moved.near_branch_target != instruction.near_branch_target:
                    raise PlanError(f"planning error at {address:#x}: {instruction} became {moved}")


def check_runs(text: Text, layout: Layout, overwritten: list[tuple[int, int]]) -> None:
    """No two runs share a byte, and no byte of one but its first is a jump target that was not redirected.

    Raises PlanError.
    """
    before = 0
    for start, end in sorted(overwritten):
        if start < before:
            raise PlanError(f"planning error at {start:#x}: patches overlap")
        before = end
    for run in layout.runs:
        for instruction in Decoder(64, text.bytes_at(run.start, run.end - run.start), ip=run.start):
            address = instruction.ip
            if address != run.start and text.barrier(address) and address not in layout.quiet:
                raise PlanError(f"planning error at {address:#x}: a jump target lies inside a patch")
