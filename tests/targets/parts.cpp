// outer, three times: middle, which calls leaf; then leaf. Then thrower, which an exception leaves.
#define PART extern "C" __attribute__((noinline))
#define MARK(n) __asm__ volatile("nopl %c0(%%rax)" : : "i"(0x1000 + n)) // no two functions are alike, or too short

PART void leaf() {
    MARK(1);
}

PART void middle() {
    leaf();
    MARK(2);
}

PART void outer() {
    middle();
    leaf();
    MARK(3);
}

PART void thrower() {
    leaf();
    throw 1;
}

int main() {
    for (int i = 0; i < 3; i++) {
        outer();
        leaf();
    }
    try {
        thrower();
    } catch (int) {
        leaf();
    }
    return 0;
}
