/* Threads that share out parts of a piece of work with the thread that has it.
 *
 * In a step of inference one piece follows the other after a few microseconds, less than a sleeping thread takes to wake.
 * So a helper looks for the next one for a moment, and lets others use the processor meanwhile, before it sleeps. */
#include "crew.h"
#include "internal.h"

#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <time.h>

#define MOST_HELPERS 63
#define MOST_PARTS 0x3ffffu
#define LOOKS 50               /* between two questions for the time */
#define NANOSECONDS_AWAKE 200000

/* Everything that must change at once: the number of the piece of work, the helpers it wants, its parts, and how many of
 * those have been taken. So nobody takes a part of a piece that has ended. */
#define STATE(piece, helpers, parts) ((uint64_t)(piece) << 44 | (uint64_t)(helpers) << 36 | (uint64_t)(parts) << 18)
#define PIECE(state) ((state) >> 44)
#define HELPERS(state) ((state) >> 36 & 0xff)
#define PARTS(state) ((state) >> 18 & MOST_PARTS)
#define TAKEN(state) ((state) & MOST_PARTS)

static struct {
    pthread_mutex_t has_work; /* of the thread whose work is being done */
    pthread_mutex_t lock;     /* of those who fall asleep */
    pthread_cond_t more[MOST_HELPERS];
    atomic_int asleep[MOST_HELPERS];
    unsigned started;
    void (*function)(const void *part);
    const char *parts;
    size_t size;
    atomic_uint_fast64_t state;
    atomic_uint left; /* parts that are not done */
} crew = {.has_work = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER};

static void pause_shortly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void take_parts(uint64_t piece) {
    uint64_t state = atomic_load(&crew.state);
    while (PIECE(state) == piece && TAKEN(state) < PARTS(state))
        if (atomic_compare_exchange_weak(&crew.state, &state, state + 1)) {
            crew.function(crew.parts + TAKEN(state) * crew.size);
            atomic_fetch_sub(&crew.left, 1);
            state = atomic_load(&crew.state);
        }
}

/* Whether there is another piece of work than the one seen last, and for this helper. */
static int is_called(uint64_t state, uint64_t seen, unsigned helper) {
    return PIECE(state) != seen && helper < HELPERS(state);
}

static void sleep_until_called(uint64_t seen, unsigned helper) {
    pthread_mutex_lock(&crew.lock);
    atomic_store(&crew.asleep[helper], 1);
    while (!is_called(atomic_load(&crew.state), seen, helper)) pthread_cond_wait(&crew.more[helper], &crew.lock);
    atomic_store(&crew.asleep[helper], 0);
    pthread_mutex_unlock(&crew.lock);
}

static void *help(void *number) {
    unsigned helper = (unsigned)(uintptr_t)number, looks = 0;
    uint64_t seen = UINT64_MAX;
    int64_t end = now() + NANOSECONDS_AWAKE;
    for (;;) {
        uint64_t state = atomic_load(&crew.state);
        if (is_called(state, seen, helper)) {
            seen = PIECE(state);
            take_parts(seen);
            end = now() + NANOSECONDS_AWAKE;
        } else if (++looks % LOOKS) {
            pause_shortly();
        } else if (now() < end) {
            sched_yield();
        } else {
            sleep_until_called(seen, helper);
        }
    }
    return NULL;
}

/* In a process that was forked there are no helpers, and nobody has work. */
static void forget(void) {
    pthread_mutex_init(&crew.has_work, NULL);
    pthread_mutex_init(&crew.lock, NULL);
    atomic_store(&crew.state, 0);
    crew.started = 0;
}

static void forget_when_forked(void) { pthread_atfork(NULL, NULL, forget); }

/* As many of the wanted helpers as the system lets start; signals are for the threads that were there before. */
static unsigned start(unsigned wanted) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    sigset_t all, before;
    pthread_once(&once, forget_when_forked);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (crew.started < wanted) {
        pthread_t thread;
        pthread_cond_init(&crew.more[crew.started], NULL);
        atomic_store(&crew.asleep[crew.started], 0);
        if (pthread_create(&thread, NULL, help, (void *)(uintptr_t)crew.started)) break;
        pthread_detach(thread);
        crew.started++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return crew.started < wanted ? crew.started : wanted;
}

void share_out(void (*function)(const void *part), const void *parts, size_t size, size_t count, size_t threads) {
    size_t wanted = threads < count ? threads : count;
    if (wanted > MOST_HELPERS + 1) wanted = MOST_HELPERS + 1;
    if (wanted <= 1 || count > MOST_PARTS || pthread_mutex_trylock(&crew.has_work)) {
        for (size_t part = 0; part < count; part++) function((const char *)parts + part * size);
        return;
    }
    unsigned helpers = (unsigned)wanted - 1;
    if (crew.started < helpers) helpers = start(helpers);
    uint64_t piece = (PIECE(atomic_load(&crew.state)) + 1) & 0xfffff;
    crew.function = function;
    crew.parts = parts;
    crew.size = size;
    atomic_store(&crew.left, (unsigned)count);
    atomic_store(&crew.state, STATE(piece, helpers, count));
    for (unsigned helper = 0; helper < helpers; helper++)
        if (atomic_load(&crew.asleep[helper])) {
            pthread_mutex_lock(&crew.lock);
            pthread_cond_signal(&crew.more[helper]);
            pthread_mutex_unlock(&crew.lock);
        }
    take_parts(piece);
    for (unsigned looks = 1; atomic_load(&crew.left); looks++)
        if (looks % LOOKS)
            pause_shortly();
        else
            sched_yield();
    pthread_mutex_unlock(&crew.has_work);
}
