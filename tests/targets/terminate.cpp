// Ends by std::terminate, or by a fault in a handler: KIND.
#include <cstdlib>
#include <cstring>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>

namespace own {
struct Plain {
    long weight = 7;
};
struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
    int code = 5;
};
struct Tagged {
    virtual ~Tagged() = default;
    long tag = 3;
};
struct Both : Tagged, Error {
    explicit Both(const char *text) : Error(text) {}
};
} // namespace own

static const char *kind;

static bool is(const char *name) {
    return std::strcmp(kind, name) == 0;
}

__attribute__((noinline)) static void fail() {
    if (is("runtime"))
        throw std::runtime_error("no such table");
    if (is("long"))
        throw std::logic_error(std::string(1000, 'x'));
    if (is("derived"))
        throw own::Error("derived text");
    if (is("both"))
        throw own::Both("second base");
    if (is("plain"))
        throw own::Plain();
    if (is("memory"))
        throw std::bad_alloc();
    if (is("system"))
        throw std::system_error(std::make_error_code(std::errc::no_such_file_or_directory), "opening");
    if (is("number"))
        throw 42;
    if (is("text"))
        throw "a literal";
    if (is("string"))
        throw std::string("short");
    if (is("terminate"))
        std::terminate();
}

__attribute__((noinline)) static void promised() noexcept {
    throw std::runtime_error("broken promise");
}

__attribute__((noinline)) static void nested() {
    try {
        throw std::runtime_error("outer");
    } catch (const std::exception &) {
        throw std::logic_error("inner");
    }
}

__attribute__((noinline)) static void past() {
    try {
        throw std::runtime_error("handled before");
    } catch (const std::exception &) {
    }
    std::terminate();
}

int main(int, char **arguments) {
    kind = arguments[1];
    if (is("noexcept"))
        promised();
    if (is("nested"))
        nested();
    if (is("past"))
        past();
    if (is("thread")) {
        std::thread([] { throw std::runtime_error("on a thread"); }).join();
    }
    if (is("again"))
        try {
            throw own::Error("thrown again");
        } catch (...) {
            throw;
        }
    if (is("pointer"))
        std::rethrow_exception(std::make_exception_ptr(own::Error("by pointer")));
    if (is("handler"))
        std::set_terminate([] { std::abort(); });
    if (is("handler"))
        throw own::Error("own handler");
    if (is("fault"))
        try {
            throw own::Error("while handled");
        } catch (const own::Error &) {
            *reinterpret_cast<volatile int *>(16) = 1;
        }
    if (is("abort"))
        std::abort();
    fail();
    return 0;
}
