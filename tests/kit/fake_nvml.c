/* A stand-in for libnvidia-ml.so.1, so that the real pynvml calls, structs and error codes run without a card. Its
 * figures come from the file that $FAKE_NVML names, read anew at each call; see tests/kit/fake_nvml.py. A figure of one
 * device stands there as UUID.name, one of all of them as name. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
       ARGUMENT_VERSION_MISMATCH = 25 };
enum { CARDS = 8, INSTANCES = 7 };

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gpu_instance, compute_instance; } process_v3;
typedef struct { char uuid[32]; long long reads, begun_at; } device;

static device cards[CARDS], instances[CARDS][INSTANCES];
static int users, inits;

static long long look_up(const char *name, long long otherwise) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char key[96];
    long long value, found = otherwise;
    if (!file) return otherwise;
    while (fscanf(file, "%95s %lld", key, &value) == 2)
        if (!strcmp(key, name)) found = value;
    fclose(file);
    return found;
}

static long long figure(const device *of, const char *name, long long otherwise) {
    char whole[96];
    snprintf(whole, sizeof whole, "%s.%s", of->uuid, name);
    return look_up(whole, look_up(name, otherwise));
}

/* a driver that hangs, for as long as the file says so */
static void hang(void) {
    while (look_up("hangs", 0)) usleep(5000);
}

static device *card(unsigned int index) {
    if (index >= CARDS || index >= look_up("cards", 1)) return NULL;
    snprintf(cards[index].uuid, sizeof cards[index].uuid, "GPU-fake-%u", index + 1);
    return &cards[index];
}

/* instances is a set of bits: those that are there need not be the first ones */
static device *instance(unsigned int index, unsigned int number) {
    device *parent = card(index), *found;
    if (!parent || number >= INSTANCES || !figure(parent, "mig", 0)) return NULL;
    if (!(figure(parent, "instances", 0) >> number & 1)) return NULL;
    found = &instances[index][number];
    snprintf(found->uuid, sizeof found->uuid, "MIG-fake-%u-%u", index + 1, number);
    return found;
}

/* falls by fall_bytes with each read but the first, down to least_bytes */
static unsigned long long used_bytes(device *of) {
    long long from = figure(of, "used_bytes", 0), least = figure(of, "least_bytes", 0), used;
    if (from != of->begun_at) of->reads = 0;
    of->begun_at = from;
    used = from - figure(of, "fall_bytes", 0) * of->reads++;
    return used > least ? used : least;
}

int nvmlInitWithFlags(unsigned int flags) {
    int error = (int)look_up("init_error", SUCCESS);
    (void)flags;
    hang();
    if (inits++ < look_up("first_fail", 0)) return (int)look_up("first_error", 999);
    if (!error) users++;
    return error;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int error) { (void)error; return "an error of the fake NVML"; }

int nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    snprintf(version, length, "%lld.65.06", look_up("driver", 580));
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    *count = (unsigned int)look_up("cards", 1);
    return users ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, device **found) {
    *found = card(index);
    return *found ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device **found) {
    for (unsigned int index = 0; index < CARDS; index++) {
        if (!(*found = card(index))) break;
        if (!strcmp((*found)->uuid, uuid)) return SUCCESS;
        for (unsigned int number = 0; number < INSTANCES; number++)
            if ((*found = instance(index, number)) && !strcmp((*found)->uuid, uuid)) return SUCCESS;
    }
    return NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo(device *of, memory_v1 *memory) {
    hang();
    if (!users) return UNINITIALIZED;
    memory->total = figure(of, "total_bytes", 0);
    memory->used = used_bytes(of) + figure(of, "reserved_bytes", 0);
    memory->free = memory->total - memory->used;
    return (int)figure(of, "read_error", SUCCESS);
}

int nvmlDeviceGetUUID(device *of, char *uuid, unsigned int length) {
    snprintf(uuid, length, "%s", of->uuid);
    return SUCCESS;
}

int nvmlDeviceGetName(device *of, char *name, unsigned int length) {
    snprintf(name, length, strncmp(of->uuid, "MIG", 3) ? "Fake 80GB" : "Fake 80GB MIG 1g.10gb");
    return SUCCESS;
}

/* WITHOUT_NEW: a driver from before all of what follows */
#ifndef WITHOUT_NEW
int nvmlDeviceGetMigMode(device *of, unsigned int *current, unsigned int *pending) {
    *current = (unsigned int)figure(of, "mig", 0);
    *pending = (unsigned int)figure(of, "mig_pending", *current);
    return (int)figure(of, "mig_error", SUCCESS);
}

int nvmlDeviceGetMaxMigDeviceCount(device *of, unsigned int *count) {
    (void)of;
    *count = INSTANCES;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(device *of, unsigned int number, device **found) {
    *found = instance((unsigned int)(of - cards), number);
    return *found ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetMemoryInfo_v2(device *of, memory_v2 *memory) {
    hang();
    if (!users) return UNINITIALIZED;
    if (figure(of, "v2_error", SUCCESS)) return (int)figure(of, "v2_error", SUCCESS);
    if (memory->version != (sizeof(memory_v2) | 2u << 24)) return ARGUMENT_VERSION_MISMATCH;
    memory->total = figure(of, "total_bytes", 0);
    memory->reserved = figure(of, "reserved_bytes", 0);
    memory->used = used_bytes(of);
    memory->free = memory->total - memory->used - memory->reserved;
    return (int)figure(of, "read_error", SUCCESS);
}

/* process_N is the pid of the N-th, process_N_bytes what it holds: NVML_VALUE_NOT_AVAILABLE where it is not set */
int nvmlDeviceGetComputeRunningProcesses_v3(device *of, unsigned int *count, process_v3 *found) {
    unsigned int there = (unsigned int)figure(of, "processes", 0), room = *count;
    char name[32];
    int error = (int)figure(of, "processes_error", SUCCESS);
    if (error) return error;
    *count = there;
    if (!there) return SUCCESS;
    if (room < there || !found) return INSUFFICIENT_SIZE;
    for (unsigned int n = 0; n < there; n++) {
        snprintf(name, sizeof name, "process_%u", n);
        found[n].pid = (unsigned int)figure(of, name, 0);
        snprintf(name, sizeof name, "process_%u_bytes", n);
        found[n].used = (unsigned long long)figure(of, name, -1);
    }
    return SUCCESS;
}
#endif
