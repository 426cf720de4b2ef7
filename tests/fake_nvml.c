/* A stand-in for libnvidia-ml.so.1 with one card, so that the real pynvml calls, structs and error codes run without a
 * card. Its figures come from the file that $FAKE_NVML names, read anew at each call; see tests/fake_nvml.py. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, NOT_SUPPORTED = 3, NOT_FOUND = 6 };

typedef struct { unsigned long long total, free, used; } memory_v1;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } memory_v2;

static long long reads, begun_at;
static int users;

static long long figure(const char *name, long long otherwise) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char key[64];
    long long value, found = otherwise;
    if (!file) return otherwise;
    while (fscanf(file, "%63s %lld", key, &value) == 2)
        if (!strcmp(key, name)) found = value;
    fclose(file);
    return found;
}

/* falls by fall_bytes with each read but the first, down to least_bytes */
static unsigned long long used_bytes(void) {
    long long from = figure("used_bytes", 0), least = figure("least_bytes", 0), used;
    if (from != begun_at) reads = 0;
    begun_at = from;
    used = from - figure("fall_bytes", 0) * reads++;
    return used > least ? used : least;
}

int nvmlInitWithFlags(unsigned int flags) {
    int error = (int)figure("init_error", SUCCESS);
    (void)flags;
    if (!error) users++;
    return error;
}

int nvmlShutdown(void) {
    if (!users) return UNINITIALIZED;
    users--;
    return SUCCESS;
}

const char *nvmlErrorString(int error) { (void)error; return "an error of the fake NVML"; }

int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
    *device = &reads;
    return strncmp(uuid, "GPU-fake", 8) ? NOT_FOUND : SUCCESS;
}

int nvmlDeviceGetMemoryInfo(void *device, memory_v1 *memory) {
    (void)device;
    if (!users) return UNINITIALIZED;
    memory->total = figure("total_bytes", 0);
    memory->used = used_bytes() + figure("reserved_bytes", 0);
    memory->free = memory->total - memory->used;
    return (int)figure("read_error", SUCCESS);
}

int nvmlDeviceGetMemoryInfo_v2(void *device, memory_v2 *memory) {
    (void)device;
    if (!users) return UNINITIALIZED;
    if (figure("v2_error", SUCCESS)) return (int)figure("v2_error", SUCCESS);
    if (memory->version != (sizeof(memory_v2) | 2u << 24)) return NOT_SUPPORTED;
    memory->total = figure("total_bytes", 0);
    memory->reserved = figure("reserved_bytes", 0);
    memory->used = used_bytes();
    memory->free = memory->total - memory->used - memory->reserved;
    return (int)figure("read_error", SUCCESS);
}
