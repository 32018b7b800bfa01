/* Asking the recorder for plans over a local stream socket. The recorder may have died, hang or never have been there:
 * every wait ends, and then the program goes on without being traced. */
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>

#include "../core/memory.h"
#include "linux.h"
#include "syscall.h"

#define CONNECT_SECONDS 5
/* A recorder that died closes the socket, so a long silence means that it is planning something large. */
#define ANSWER_SECONDS 60
#define WRITING_SECONDS 86400

static uint64_t seconds(void) {
    struct timespec now = {0};
    cs_call3(SYS_clock_gettime, CLOCK_MONOTONIC, (long)&now, 0);
    return (uint64_t)now.tv_sec;
}

#define MOST_FILES 3

/* Descriptors that come along with data (unix(7), SCM_RIGHTS). */
struct files {
    int count, descriptors[MOST_FILES];
};

static long receive(int descriptor, uint8_t *at, uint64_t bytes, struct files *files) {
    union {
        struct cmsghdr header;
        uint8_t room[CMSG_SPACE(sizeof files->descriptors)];
    } control;
    struct iovec data = {at, bytes};
    struct msghdr message = {
        .msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    long got = cs_call3(SYS_recvmsg, descriptor, (long)&message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got > 0 && message.msg_controllen >= sizeof(struct cmsghdr) && control.header.cmsg_type == SCM_RIGHTS) {
        files->count = (int)((control.header.cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(files->descriptors, CMSG_DATA(&control.header), (uint64_t)files->count * sizeof(int));
    }
    return got;
}

/* Move `bytes` bytes out, or with `files` in, before `limit` seconds have passed. */
static bool transfer(int descriptor, void *data, uint64_t bytes, struct files *files, uint64_t limit) {
    uint64_t deadline = seconds() + limit;
    uint8_t *at = data;
    while (bytes) {
        long moved = files ? receive(descriptor, at, bytes, files)
                           : cs_call6(SYS_sendto, descriptor, (long)at, (long)bytes, MSG_DONTWAIT | MSG_NOSIGNAL, 0, 0);
        if (moved > 0) {
            at += moved;
            bytes -= (uint64_t)moved;
            continue;
        }
        if (moved == -EINTR)
            continue;
        if (moved != -EAGAIN || seconds() >= deadline)
            return false;
        struct pollfd wait = {.fd = descriptor, .events = files ? POLLIN : POLLOUT};
        cs_call3(SYS_poll, (long)&wait, 1, 1000);
    }
    return true;
}

static int connect_to(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (cs_given(path) >= 0)
        return cs_open(path, O_RDWR);
    if (cs_text_length(path) >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, cs_text_length(path));
    long created = cs_call3(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (cs_failed(created))
        return -1;
    int descriptor = cs_move_descriptor((int)created);
    uint64_t deadline = seconds() + CONNECT_SECONDS;
    for (;;) {
        long result = cs_call3(SYS_connect, descriptor, (long)&address, sizeof address);
        if (!result)
            return descriptor;
        if ((result != -EAGAIN && result != -EINTR) || seconds() >= deadline)
            break;
        struct pollfd none = {.fd = -1};
        cs_call3(SYS_poll, (long)&none, 1, 10); /* its queue of connections is full */
    }
    cs_close(descriptor);
    return -1;
}

bool cs_ask_begin(struct cs_asker *asker, uint32_t module_count) {
    struct cs_request request = {.magic = CS_REQUEST_MAGIC,
                                 .version = CS_REQUEST_VERSION,
                                 .pid = cs_session.process->pid,
                                 .module_count = module_count};
    *asker = (struct cs_asker){.socket = cs_launch.recorder ? connect_to(cs_launch.recorder) : -1};
    if (asker->socket >= 0 && transfer(asker->socket, &request, sizeof request, NULL, CONNECT_SECONDS))
        return true;
    cs_ask_end(asker);
    return false;
}

bool cs_ask(struct cs_asker *asker, const struct cs_module *module, const char *path) {
    static struct cs_request_module question; /* too large for a stack; the module lock is held */
    memset(&question, 0, sizeof question);
    question.base = module->base;
    question.span = module->span;
    question.build_id_bytes = module->build_id_bytes;
    question.module_flags = module->flags;
    memcpy(question.build_id, module->build_id, sizeof question.build_id);
    uint64_t at = 0;
    cs_text_append(question.path, sizeof question.path, &at, path);
    return asker->socket >= 0 && transfer(asker->socket, &question, sizeof question, NULL, CONNECT_SECONDS);
}

bool cs_ask_answer(struct cs_asker *asker, struct cs_reply *reply) {
    struct files files = {0};
    if (asker->socket < 0 || !transfer(asker->socket, reply, sizeof *reply, &files, ANSWER_SECONDS))
        return false;
    reply->plan[sizeof reply->plan - 1] = reply->chosen[sizeof reply->chosen - 1] =
        reply->unwind[sizeof reply->unwind - 1] = reply->roles[sizeof reply->roles - 1] = 0;
    const char *paths[] = {reply->plan, reply->chosen, reply->roles};
    for (int i = 0, file = 0; i < 3 && file < files.count; i++)
        if (paths[i][0])
            cs_give(paths[i], files.descriptors[file++]);
    return true;
}

void cs_ask_wait(struct cs_asker *asker) {
    struct files none = {0};
    uint8_t done;
    if (asker->socket >= 0)
        transfer(asker->socket, &done, sizeof done, &none, WRITING_SECONDS);
}

void cs_ask_end(struct cs_asker *asker) {
    if (asker->socket >= 0)
        cs_close(asker->socket);
    asker->socket = -1;
}
