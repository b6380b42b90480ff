/* libnvidia-ml.so.1 without a GPU: it answers what a file says, and reads the file again whenever it has changed.
 *
 * A line is a key and its value. The key is a device (an index, or GPU/INSTANCE for MIG) and what is asked of it:
 *
 *     0.power 250000         nvmlDeviceGetPowerUsage of GPU 0
 *     0/1.memory 10 6 4      nvmlDeviceGetMemoryInfo of its second MIG device: total, used, free
 *     1.temperature !999     fails with NVML_ERROR_UNKNOWN
 *     1.lost 15              everything of GPU 1 fails with NVML_ERROR_GPU_IS_LOST
 *     count 2                and what is not about a device: init, count, driver, reloads, hang_ms, xid
 *
 * What has no line is not supported, as most of NVML is on most GPUs. Compiled against the real nvml.h, so that a
 * function that the header does not know, or knows otherwise, does not compile.
 */
#define NVML_NO_UNVERSIONED_FUNC_DEFS
#include <nvml.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_LINES 4096
#define MAX_GPUS 16
#define MAX_MIGS 8
#define MAX_PROCESSES 512

struct nvmlDevice_st { int gpu, mig; char name[16]; };
struct nvmlEventSet_st { unsigned long long gpus; };

static struct nvmlDevice_st devices[MAX_GPUS][MAX_MIGS + 1]; /* the last is the GPU itself */
static struct nvmlEventSet_st event_set;
static char path[4096], text[1 << 20];
static struct line { char *key, *value; } said[MAX_LINES];
static int lines, users, delivered;
static double reloads;
static struct stat seen;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void stub_use(const char *file) {
    snprintf(path, sizeof path, "%s", file ? file : "");
    memset(&seen, 0, sizeof seen);
    delivered = 0;
}

/* Lines of the same key stay in their order. */
static int by_key(const void *one, const void *other) {
    const struct line *a = one, *b = other;
    int order = strcmp(a->key, b->key);
    return order ? order : (a->key > b->key) - (a->key < b->key);
}

static int has_key(const void *key, const void *line) { return strcmp(key, ((const struct line *)line)->key); }

static void refresh(void) {
    struct stat now;
    if (!*path && getenv("NVML_STUB")) snprintf(path, sizeof path, "%s", getenv("NVML_STUB"));
    if (stat(path, &now)) { lines = 0; return; }
    if (now.st_ino == seen.st_ino && now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec && now.st_mtim.tv_sec == seen.st_mtim.tv_sec
        && now.st_size == seen.st_size) return;
    seen = now;
    FILE *file = fopen(path, "r");
    if (!file) return;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    lines = 0;
    char *rest = text, *line;
    while ((line = strsep(&rest, "\n")) && lines < MAX_LINES) {
        char *value = strchr(line, ' ');
        if (!value) continue;
        *value = 0;
        said[lines++] = (struct line){line, value + 1};
    }
    qsort(said, lines, sizeof *said, by_key);
}

/* The value of a key; NULL if there is none. */
static const char *find(const char *key) {
    struct line *found = bsearch(key, said, lines, sizeof *said, has_key);
    return found ? found->value : NULL;
}

static double setting(const char *key) {
    const char *value = find(key);
    return value ? atof(value[0] == '!' ? value + 1 : value) : 0;
}

/* What a device says to a question: its text, or why there is none. */
static nvmlReturn_t ask(nvmlDevice_t device, const char *what, const char **answer) {
    char key[128];
    pthread_mutex_lock(&lock);
    refresh();
    nvmlReturn_t result = NVML_SUCCESS;
    if (!users || setting("reloads") != reloads) {
        result = NVML_ERROR_UNINITIALIZED;
    } else if (device) {
        snprintf(key, sizeof key, "%d.lost", device->gpu);
        result = (nvmlReturn_t)setting(key);
        snprintf(key, sizeof key, "%s.%s", device->name, what);
    } else {
        snprintf(key, sizeof key, "%s", what);
    }
    if (result == NVML_SUCCESS) {
        const char *value = find(key);
        if (!value) result = NVML_ERROR_NOT_SUPPORTED;
        else if (value[0] == '!') result = (nvmlReturn_t)atoi(value + 1);
        else *answer = value;
    }
    int hang_ms = (int)setting("hang_ms");
    pthread_mutex_unlock(&lock);
    if (hang_ms) usleep(hang_ms * 1000);
    return result;
}

/* Up to four numbers. */
static nvmlReturn_t numbers(nvmlDevice_t device, const char *what, double n[4]) {
    const char *answer;
    nvmlReturn_t result = ask(device, what, &answer);
    if (result == NVML_SUCCESS) {
        memset(n, 0, 4 * sizeof *n);
        sscanf(answer, "%lf %lf %lf %lf", n, n + 1, n + 2, n + 3);
    }
    return result;
}

static nvmlReturn_t number(nvmlDevice_t device, const char *what, unsigned int *out) {
    double n[4];
    nvmlReturn_t result = numbers(device, what, n);
    if (result == NVML_SUCCESS) *out = (unsigned int)n[0];
    return result;
}

static nvmlReturn_t string(nvmlDevice_t device, const char *what, char *out, unsigned int length) {
    const char *answer;
    nvmlReturn_t result = ask(device, what, &answer);
    if (result == NVML_SUCCESS) snprintf(out, length, "%s", answer);
    return result;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    refresh();
    nvmlReturn_t result = lines ? (nvmlReturn_t)setting("init") : NVML_ERROR_DRIVER_NOT_LOADED;
    if (result == NVML_SUCCESS) {
        users++;
        reloads = setting("reloads");
        for (int gpu = 0; gpu < MAX_GPUS; gpu++)
            for (int mig = 0; mig <= MAX_MIGS; mig++) {
                struct nvmlDevice_st *device = &devices[gpu][mig];
                device->gpu = gpu;
                device->mig = mig;
                snprintf(device->name, sizeof device->name, mig < MAX_MIGS ? "%d/%d" : "%d", gpu, mig);
            }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

nvmlReturn_t nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    nvmlReturn_t result = users ? NVML_SUCCESS : NVML_ERROR_UNINITIALIZED;
    if (users) users--;
    pthread_mutex_unlock(&lock);
    return result;
}

const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case NVML_SUCCESS: return "Success";
    case NVML_ERROR_UNKNOWN: return "Unknown Error";
    default: return "An error of the stub";
    }
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) { return string(NULL, "driver", version, length); }
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) { return number(NULL, "count", count); }

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device) {
    const char *answer;
    if (index >= MAX_GPUS) return NVML_ERROR_INVALID_ARGUMENT;
    *device = &devices[index][MAX_MIGS];
    return ask(*device, "uuid", &answer);
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) { return string(device, "uuid", uuid, length); }
nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) { return string(device, "name", name, length); }
nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci) { return string(device, "pci", pci->busId, sizeof pci->busId); }

#define UINT(FUNCTION, WHAT) nvmlReturn_t FUNCTION(nvmlDevice_t device, unsigned int *out) { return number(device, WHAT, out); }
UINT(nvmlDeviceGetPowerUsage, "power")
UINT(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
UINT(nvmlDeviceGetFanSpeed, "fan")
UINT(nvmlDeviceGetPcieReplayCounter, "pcie_replays")
UINT(nvmlDeviceGetCurrPcieLinkWidth, "pcie_width")
UINT(nvmlDeviceGetCurrPcieLinkGeneration, "pcie_generation")
UINT(nvmlDeviceGetMaxPcieLinkWidth, "pcie_width_max")
UINT(nvmlDeviceGetMaxPcieLinkGeneration, "pcie_generation_max")
UINT(nvmlDeviceGetMaxMigDeviceCount, "migs_max")
UINT(nvmlDeviceGetGpuInstanceId, "gi")
UINT(nvmlDeviceGetComputeInstanceId, "ci")

#define SAMPLED(FUNCTION, WHAT) nvmlReturn_t FUNCTION(nvmlDevice_t device, unsigned int *out, unsigned int *period) { \
    *period = 166666; return number(device, WHAT, out); }
SAMPLED(nvmlDeviceGetEncoderUtilization, "encoder")
SAMPLED(nvmlDeviceGetDecoderUtilization, "decoder")
SAMPLED(nvmlDeviceGetJpgUtilization, "jpg")
SAMPLED(nvmlDeviceGetOfaUtilization, "ofa")

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *out) {
    double n[4];
    nvmlReturn_t result = numbers(device, "utilization", n);
    if (result == NVML_SUCCESS) *out = (nvmlUtilization_t){.gpu = (unsigned)n[0], .memory = (unsigned)n[1]};
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *out) {
    double n[4];
    nvmlReturn_t result = numbers(device, "memory", n);
    if (result == NVML_SUCCESS)
        *out = (nvmlMemory_t){.total = (unsigned long long)n[0], .used = (unsigned long long)n[1], .free = (unsigned long long)n[2]};
    return result;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *out) {
    double n[4];
    if (out->version != nvmlMemory_v2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    nvmlReturn_t result = numbers(device, "memory_v2", n);
    if (result == NVML_SUCCESS) {
        out->total = (unsigned long long)n[0];
        out->used = (unsigned long long)n[1];
        out->free = (unsigned long long)n[2];
        out->reserved = (unsigned long long)n[3];
    }
    return result;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, nvmlTemperatureSensors_t sensor, unsigned int *out) {
    (void)sensor;
    return number(device, "temperature", out);
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, nvmlTemperatureThresholds_t which, unsigned int *out) {
    char what[32];
    snprintf(what, sizeof what, "threshold.%d", which);
    return number(device, what, out);
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, nvmlClockType_t type, unsigned int *out) {
    char what[32];
    snprintf(what, sizeof what, "clock.%d", type);
    return number(device, what, out);
}

/* Its older name, nvmlDeviceGetCurrentClocksThrottleReasons, is left out: a library may have either. */
nvmlReturn_t nvmlDeviceGetCurrentClocksEventReasons(nvmlDevice_t device, unsigned long long *out) {
    double n[4];
    nvmlReturn_t result = numbers(device, "throttle", n);
    if (result == NVML_SUCCESS) *out = (unsigned long long)n[0];
    return result;
}

nvmlReturn_t nvmlDeviceGetPerformanceState(nvmlDevice_t device, nvmlPstates_t *out) {
    unsigned int state;
    nvmlReturn_t result = number(device, "pstate", &state);
    if (result == NVML_SUCCESS) *out = (nvmlPstates_t)state;
    return result;
}

nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, nvmlMemoryErrorType_t error, nvmlEccCounterType_t counter,
                                         unsigned long long *out) {
    char what[32];
    double n[4];
    snprintf(what, sizeof what, "ecc.%d.%d", error, counter);
    nvmlReturn_t result = numbers(device, what, n);
    if (result == NVML_SUCCESS) *out = (unsigned long long)n[0];
    return result;
}

nvmlReturn_t nvmlDeviceGetRemappedRows(nvmlDevice_t device, unsigned int *corrected, unsigned int *uncorrected,
                                       unsigned int *pending, unsigned int *failed) {
    double n[4];
    nvmlReturn_t result = numbers(device, "remapped", n);
    if (result == NVML_SUCCESS) {
        *corrected = (unsigned)n[0];
        *uncorrected = (unsigned)n[1];
        *pending = (unsigned)n[2];
        *failed = (unsigned)n[3];
    }
    return result;
}

nvmlReturn_t nvmlDeviceGetPcieThroughput(nvmlDevice_t device, nvmlPcieUtilCounter_t counter, unsigned int *out) {
    char what[32];
    snprintf(what, sizeof what, "pcie_throughput.%d", counter);
    return number(device, what, out);
}

nvmlReturn_t nvmlDeviceGetNvLinkState(nvmlDevice_t device, unsigned int link, nvmlEnableState_t *out) {
    char what[32];
    unsigned int state;
    snprintf(what, sizeof what, "nvlink.%u", link);
    nvmlReturn_t result = number(device, what, &state);
    if (result == NVML_SUCCESS) *out = (nvmlEnableState_t)state;
    return result;
}

nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    char what[64];
    for (int i = 0; i < count; i++) {
        double n[4];
        snprintf(what, sizeof what, fields[i].scopeId ? "field.%u.%u" : "field.%u", fields[i].fieldId, fields[i].scopeId);
        fields[i].nvmlReturn = numbers(device, what, n);
        if (fields[i].nvmlReturn == NVML_ERROR_GPU_IS_LOST || fields[i].nvmlReturn == NVML_ERROR_UNINITIALIZED)
            return fields[i].nvmlReturn;
        if (fields[i].nvmlReturn == NVML_SUCCESS) {
            fields[i].valueType = NVML_VALUE_TYPE_UNSIGNED_LONG_LONG;
            fields[i].value.ullVal = (unsigned long long)n[0];
        }
    }
    return NVML_SUCCESS;
}

/* Lines "0.KIND.N PID BYTES", from N = 0; BYTES -1: not available. */
static nvmlReturn_t processes(nvmlDevice_t device, const char *kind, unsigned int *room, nvmlProcessInfo_t *out) {
    char what[64];
    double n[4];
    unsigned int count = 0;
    for (; count < MAX_PROCESSES; count++) {
        snprintf(what, sizeof what, "%s.%u", kind, count);
        nvmlReturn_t result = numbers(device, what, n);
        if (result == NVML_ERROR_NOT_SUPPORTED && (count || !strcmp(kind, "compute"))) break;
        if (result != NVML_SUCCESS) return result;
        if (out && count < *room)
            out[count] = (nvmlProcessInfo_t){.pid = (unsigned)n[0], .usedGpuMemory = (unsigned long long)(long long)n[1],
                                             .gpuInstanceId = 0xFFFFFFFF, .computeInstanceId = 0xFFFFFFFF};
    }
    int fits = count <= *room;
    *room = count;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

#define PROCESSES(FUNCTION, KIND) nvmlReturn_t FUNCTION(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_t *out) { \
    return processes(device, KIND, count, out); }
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")
PROCESSES(nvmlDeviceGetMPSComputeRunningProcesses_v3, "mps")

/* Lines "0.sample.N TIME_US PID SM MEMORY". */
nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device, nvmlProcessUtilizationSample_t *out, unsigned int *count,
                                             unsigned long long since) {
    char what[64];
    double n[4];
    unsigned int found = 0;
    for (unsigned int i = 0; i < MAX_PROCESSES; i++) {
        snprintf(what, sizeof what, "sample.%u", i);
        nvmlReturn_t result = numbers(device, what, n);
        if (result == NVML_ERROR_NOT_SUPPORTED && i) break;
        if (result != NVML_SUCCESS) return result;
        if (n[0] <= (double)since) continue;
        if (out && found < *count)
            out[found] = (nvmlProcessUtilizationSample_t){.timeStamp = (unsigned long long)n[0], .pid = (unsigned)n[1],
                                                          .smUtil = (unsigned)n[2], .memUtil = (unsigned)n[3]};
        found++;
    }
    if (!found) return NVML_ERROR_NOT_FOUND;
    int fits = out && found <= *count;
    *count = found;
    return fits ? NVML_SUCCESS : NVML_ERROR_INSUFFICIENT_SIZE;
}

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending) {
    nvmlReturn_t result = number(device, "mig", current);
    *pending = *current;
    return result;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index, nvmlDevice_t *mig) {
    const char *answer;
    if (index >= MAX_MIGS) return NVML_ERROR_INVALID_ARGUMENT;
    *mig = &devices[device->gpu][index];
    nvmlReturn_t result = ask(*mig, "uuid", &answer);
    return result == NVML_ERROR_NOT_SUPPORTED ? NVML_ERROR_NOT_FOUND : result;
}

nvmlReturn_t nvmlDeviceGetAttributes_v2(nvmlDevice_t device, nvmlDeviceAttributes_t *out) {
    double n[4];
    nvmlReturn_t result = numbers(device, "attributes", n);
    if (result == NVML_SUCCESS) *out = (nvmlDeviceAttributes_t){.multiprocessorCount = (unsigned)n[0]};
    return result;
}

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set) {
    unsigned int possible;
    event_set.gpus = 0;
    *set = &event_set;
    nvmlReturn_t result = number(NULL, "event_sets", &possible);
    return result == NVML_ERROR_NOT_SUPPORTED ? NVML_SUCCESS : result;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types, nvmlEventSet_t set) {
    unsigned int supported;
    nvmlReturn_t result = number(device, "events", &supported);
    if (result == NVML_SUCCESS && types & ~(unsigned long long)supported) result = NVML_ERROR_INVALID_ARGUMENT;
    if (result == NVML_SUCCESS) set->gpus |= 1ULL << device->gpu;
    return result;
}

/* Lines "xid GPU XID [GPU_INSTANCE]" are delivered once each, in their order. */
nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms) {
    for (unsigned int waited_ms = 0;; waited_ms += 10) {
        pthread_mutex_lock(&lock);
        refresh();
        int alive = users && setting("reloads") == reloads, number_of_xid = 0;
        for (int i = 0; alive && i < lines; i++) {
            unsigned int gpu, xid, instance = 0xFFFFFFFF;
            if (strcmp(said[i].key, "xid") || number_of_xid++ < delivered) continue;
            delivered = number_of_xid;
            if (sscanf(said[i].value, "%u %u %u", &gpu, &xid, &instance) < 2 || !(set->gpus & 1ULL << gpu)) continue;
            *data = (nvmlEventData_t){.device = &devices[gpu][MAX_MIGS], .eventType = nvmlEventTypeXidCriticalError,
                                      .eventData = xid, .gpuInstanceId = instance, .computeInstanceId = 0xFFFFFFFF};
            pthread_mutex_unlock(&lock);
            return NVML_SUCCESS;
        }
        pthread_mutex_unlock(&lock);
        if (!alive) return NVML_ERROR_UNINITIALIZED;
        if (waited_ms >= timeout_ms) return NVML_ERROR_TIMEOUT;
        usleep(10000);
    }
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set) { (void)set; return NVML_SUCCESS; }
