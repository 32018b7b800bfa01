/* Asking the recorder for plans, by files in its directory: NAME.ask holds a request and its modules, NAME.reply as
 * many replies and appears whole, under its name, when they are known. The recorder may have died, hang or never have
 * been there: every wait ends, and then the program goes on without being traced. The module lock is held. */
#include "../core/memory.h"
#include "windows_agent.h"

#define ANSWER_MILLISECONDS 60000u

struct question {
    struct cs_request request;
    struct cs_request_module modules[CS_ASK_LIMIT];
};

static struct question question;
static HANDLE answer;
static uint32_t number;

/* DIRECTORY/PROCESS-NUMBER.suffix: the same for no other question of the session. */
static const char *file_name(const char *suffix) {
    static char path[CS_PATH_BYTES + 48];
    uint64_t at = 0;
    cs_text_append(path, sizeof path, &at, cs_start_options.recorder);
    uint32_t numbers[] = {cs_session.process->process, number};
    for (uint32_t i = 0; i < 2; i++) {
        char digits[12];
        uint32_t place = sizeof digits - 1, rest = numbers[i];
        digits[place] = 0;
        do
            digits[--place] = (char)('0' + rest % 10);
        while (rest /= 10);
        cs_text_append(path, sizeof path, &at, i ? "-" : "/");
        cs_text_append(path, sizeof path, &at, digits + place);
    }
    cs_text_append(path, sizeof path, &at, suffix);
    return path;
}

bool cs_ask_begin(void) {
    question.request = (struct cs_request){
        .magic = CS_REQUEST_MAGIC, .version = CS_REQUEST_VERSION, .pid = cs_session.process->pid, .module_count = 0};
    return cs_start_options.recorder[0];
}

bool cs_ask_add(const struct cs_module *module, const char *path) {
    if (question.request.module_count == CS_ASK_LIMIT)
        return false;
    struct cs_request_module *asked = &question.modules[question.request.module_count++];
    memset(asked, 0, sizeof *asked);
    asked->base = module->base;
    asked->span = module->span;
    asked->build_id_bytes = module->build_id_bytes;
    asked->module_flags = module->flags;
    memcpy(asked->build_id, module->build_id, sizeof asked->build_id);
    uint64_t at = 0;
    cs_text_append(asked->path, sizeof asked->path, &at, path);
    return true;
}

bool cs_ask_send(void) {
    IO_STATUS_BLOCK status;
    number++;
    HANDLE file = cs_file_open(file_name(".ask"), FILE_WRITE_DATA, FILE_CREATE, 0);
    if (!file)
        return false;
    uint32_t bytes = (uint32_t)(sizeof question.request + question.request.module_count * sizeof question.modules[0]);
    bool sent = !NtWriteFile(file, NULL, NULL, NULL, &status, &question, bytes, NULL, NULL);
    NtClose(file);
    for (uint64_t end = cs_milliseconds() + ANSWER_MILLISECONDS; sent && !answer && cs_milliseconds() < end;) {
        answer = cs_file_open(file_name(".reply"), FILE_READ_DATA | DELETE, FILE_OPEN, FILE_DELETE_ON_CLOSE);
        if (!answer)
            cs_sleep(1);
    }
    if (!answer)
        cs_start_options.recorder[0] = 0; /* gone: nobody is to wait for it again */
    return answer;
}

bool cs_ask_answer(struct cs_reply *reply) {
    IO_STATUS_BLOCK status;
    if (!answer || NtReadFile(answer, NULL, NULL, NULL, &status, reply, sizeof *reply, NULL, NULL) ||
        status.Information != sizeof *reply)
        return false;
    reply->plan[sizeof reply->plan - 1] = reply->chosen[sizeof reply->chosen - 1] =
        reply->unwind[sizeof reply->unwind - 1] = reply->roles[sizeof reply->roles - 1] = 0;
    return true;
}

void cs_ask_end(void) {
    if (answer)
        NtClose(answer);
    answer = NULL;
}
