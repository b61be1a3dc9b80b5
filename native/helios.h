/* Helios: compute on one Vulkan device, as a C interface small enough to be called from Python through ctypes.
 *
 * It knows devices, memory, pipelines and programs (lists of dispatches). It knows nothing about arrays, kernels or
 * models. Kernels find their data by 64-bit addresses in push constants, so there are no descriptors; copies and fills
 * are kernels, too.
 *
 * Every function but helios_last_error and helios_close returns HELIOS_OK or a negative code, and then helios_last_error
 * says what happened. Nothing here prints, exits or aborts. Identifiers of memory, pipelines and programs are never 0 and
 * never used twice, so one that was freed is recognized and refused.
 *
 * Threads: every function may be called from any thread at any time, except that helios_close must be the last. Pipelines
 * compile in parallel; a wait does not hold up the others. */
#ifndef HELIOS_H
#define HELIOS_H

#include <stdint.h>

#define HELIOS_OK 0
#define HELIOS_ERROR (-1)                /* wrong arguments, or a Vulkan call failed in a way of its own */
#define HELIOS_OUT_OF_DEVICE_MEMORY (-2) /* the device is still usable */
#define HELIOS_OUT_OF_HOST_MEMORY (-3)
#define HELIOS_DEVICE_LOST (-4) /* nothing but helios_close is of use on this device any more */
#define HELIOS_TIMEOUT (-5)
#define HELIOS_NO_LOADER (-6) /* there is no libvulkan */
#define HELIOS_NO_DEVICE (-7) /* there is a loader, but no driver or no such device */
#define HELIOS_UNSUPPORTED (-8)

#define HELIOS_PUSH_BYTES 128 /* the largest push constants: what every Vulkan device has */

#define HELIOS_VALIDATE 1u /* helios_open: validation layers with synchronization validation */

#define HELIOS_MEMORY_DEVICE 0u    /* the device's own memory */
#define HELIOS_MEMORY_UPLOAD 1u    /* mapped, for the host to write; the device's own memory where that can be mapped */
#define HELIOS_MEMORY_READ_BACK 2u /* mapped, for the host to read; cached where that is possible */

#define HELIOS_PROGRAM_REPEATED 1u   /* may be submitted more than once, even while it still runs */
#define HELIOS_PROGRAM_TIMESTAMPS 2u /* takes the time around each dispatch */

#define HELIOS_DISPATCH 0u
#define HELIOS_BARRIER 1u

typedef struct helios_device helios_device;

/* One command of a program, 160 bytes. A barrier uses `kind` only: what dispatches before it write, dispatches after it
 * see; and they do not write before those have read. A dispatch of zero groups does nothing. */
typedef struct helios_command {
    uint32_t kind;
    uint32_t groups[3];
    uint64_t pipeline;
    uint32_t push_bytes; /* as many as the pipeline was made for */
    uint32_t reserved;   /* 0 */
    uint8_t push[HELIOS_PUSH_BYTES];
} helios_command;

/* What went wrong in the last call on this thread that returned a negative code: a sentence that names the Vulkan call and
 * its result, and says what to do. Valid until the next call on this thread. */
const char *helios_last_error(void);

/* All devices and their properties as one JSON object, in the order of `device_index`. `*needed` is the size of the text
 * with its final zero; when that is more than `capacity`, the text is not whole, and the call succeeds. */
int helios_describe(char *json, uint64_t capacity, uint64_t *needed);

/* Opens a device. `pipeline_cache_path` (NULL: none) is a file of compiled pipelines; when it is missing, damaged or from
 * another device or driver it counts as empty. helios_close releases everything, after waiting for the device. */
int helios_open(uint32_t device_index, uint32_t flags, const char *pipeline_cache_path, helios_device **device);
void helios_close(helios_device *device);

/* Writes the file of compiled pipelines if any were compiled since it was read or written; on a lost device it does
 * nothing. The file is whole at every moment. */
int helios_save_pipelines(helios_device *device);

/* Memory of one of the kinds above; `bytes` is at least 1. `*device_address` is a multiple of 256; `*mapped` is the host's
 * view, NULL for HELIOS_MEMORY_DEVICE. The contents are undefined. Mapped memory needs no flushing: what the host wrote
 * before a submit is seen by it, and what a program wrote can be read once the submit is complete.
 * helios_free may be called while submitted programs still use the memory: it is given back when they are complete. */
int helios_allocate(helios_device *device, uint64_t bytes, uint32_t kind, uint64_t *memory, uint64_t *device_address,
                    void **mapped);
int helios_free(helios_device *device, uint64_t memory);

/* Bytes of the largest heap of the device's own memory that this process may use now, and that it uses. Without
 * VK_EXT_memory_budget these are the size of the heap and the bytes allocated here. */
int helios_memory(helios_device *device, uint64_t *budget, uint64_t *usage);

/* Compiles the entry point `main` of a SPIR-V module. `constants` holds `count` pairs of a specialization constant's id
 * and the bits of its 32-bit value. `subgroup_size` 0 leaves the choice to the device. The module is checked for what
 * would crash a driver: damage, capabilities the device lacks, workgroups too large. Pipelines live until helios_close. */
int helios_pipeline(helios_device *device, const uint32_t *spirv, uint64_t bytes, const uint32_t *constants,
                    uint32_t count, uint32_t push_bytes, uint32_t subgroup_size, uint64_t *pipeline);

/* Records a program. It sees everything that programs submitted before it wrote, and what the host wrote into mapped
 * memory before the submit. A program that was freed while it runs is released when it is complete. */
int helios_program_create(helios_device *device, const helios_command *commands, uint64_t count, uint32_t flags,
                          uint64_t *program);
int helios_program_free(helios_device *device, uint64_t program);

/* Runs programs one after the other, as one vkQueueSubmit2. `*timeline_value` is what the device's timeline reaches when
 * they are complete: 1 for the first submit, then one more each time. */
int helios_submit(helios_device *device, const uint64_t *programs, uint32_t count, uint64_t *timeline_value);

/* Waits until the timeline has reached a value that helios_submit gave; HELIOS_TIMEOUT if it takes longer. Before it
 * sleeps, it looks at the timeline again and again for `watch_nanoseconds`, and lets others have the processor between. */
int helios_wait(helios_device *device, uint64_t timeline_value, uint64_t watch_nanoseconds,
                uint64_t timeout_nanoseconds);

/* The timeline's present value. */
int helios_completed(helios_device *device, uint64_t *timeline_value);

/* Begin and end of each dispatch in the program's last submit, which must be complete: two numbers a dispatch, in
 * nanoseconds of the device's clock. A dispatch begins when all earlier ones are done, so that durations add up. */
int helios_timestamps(helios_device *device, uint64_t program, uint64_t capacity, uint64_t *nanoseconds);

/* The validation messages so far, one a line, which are then forgotten. `needed` is as in helios_describe; when the text
 * does not fit, it is kept. */
int helios_messages(helios_device *device, char *text, uint64_t capacity, uint64_t *needed);

#endif
