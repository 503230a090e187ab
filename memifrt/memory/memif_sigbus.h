/* The SIGBUS handler that maps zero pages over a mapping when its file was truncated, and the table of guarded mappings.
 *
 * The handler runs on the thread that touched a lost page, in the middle of a copy, with or without the interpreter's
 * lock. So it may use nothing but atomic loads and stores, and system calls that signal-safety(7) allows or that are bare
 * (mmap). It takes no lock, allocates nothing, knows no Python object, and leaves errno as it was.
 *
 * A guard that is released while a handler walks the table
 * --------------------------------------------------------
 * A slot of the table is never freed, so a handler can always read it. A handler must not act on a
 * guard after its release: its address may then belong to another mapping, and its channel's fd to another file.
 *
 * A handler first adds 1 to `users` of the slot, then loads `state`, and acts only on GUARDING. A release first stores
 * LEAVING, then loads `users`, and waits until it is 0. All four are sequentially consistent: in their one order either
 * the handler's addition comes before the release's load, and the release waits until the handler has finished; or it
 * comes after it, and so after the store, and the handler sees LEAVING (or a later state) and does nothing. If the slot
 * has been taken again in between, the handler sees the new guard and checks its address after the load: then this
 * guard is meant.
 *
 * The wait ends. A handler holds `users` for two system calls that wait for no peer, and a thread cannot release a guard
 * in the middle of its own handler. In a forked child, which lacks the handlers of its parent's other threads, all
 * counts start from 0.
 *
 * The channel's fd
 * ----------------
 * A memif_hangup holds the fd in the same way: a handler adds 1 to its `users`, then loads `fd`; before the fd is closed,
 * memif_hangup_forget stores -1 and waits until `users` is 0. So no handler shuts down an fd that has been closed: its
 * number may be another file's. The memory of a memif_hangup outlives the guards that point to it, because each Guard
 * holds a reference to its HangUp until the guard is released. In a forked child every fd is forgotten: the sockets are
 * the parent's. */

#ifndef MEMIF_SIGBUS_H
#define MEMIF_SIGBUS_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define memif_get(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
#define memif_put(p, value) __atomic_store_n((p), (value), __ATOMIC_SEQ_CST)
#define memif_add(p, value) __atomic_add_fetch((p), (value), __ATOMIC_SEQ_CST)
#define memif_swap(p, value) __atomic_exchange_n((p), (value), __ATOMIC_SEQ_CST)

/* The fd of a channel, or -1 once it may not be shut down any more. */
typedef struct {
    int fd;
    unsigned users;
} memif_hangup;

enum { MEMIF_FREE, MEMIF_GUARDING, MEMIF_LEAVING };

typedef struct {
    unsigned state, users;
    uintptr_t start, end;
    size_t block;
    memif_hangup *hangup;
    /* Whether a page was lost. It is set before the zeros appear, so that who reads zeros can ask. */
    int lost;
} memif_guard;

#define MEMIF_GUARDS_PER_CHUNK 128

/* Chunks are added at the end and stay for good. */
typedef struct memif_chunk {
    memif_guard guards[MEMIF_GUARDS_PER_CHUNK];
    struct memif_chunk *next;
} memif_chunk;

static memif_chunk memif_guards;
/* For everything but the handler. Python code never runs while it is held. */
static pthread_mutex_t memif_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned memif_guarding;

/* What handled SIGBUS before us. The handler may read it at any time, so a new one goes into the other place. */
static struct sigaction memif_befores[2];
static const struct sigaction *memif_before = &memif_befores[0];
/* Whether a fault that is not ours, or any signal for a crash handler, has been passed on to a function. */
static int memif_passed_on;
/* Whether a signal was ignored because a crash handler had sent it. */
static int memif_ignored;

/* --- the handler ------------------------------------------------------------------------------------------------- */

static void memif_hang_up(memif_hangup *hangup) {
    if (hangup == NULL)
        return;
    memif_add(&hangup->users, 1);
    int fd = memif_get(&hangup->fd);
    if (fd >= 0)
        /* Only our reading ends. That wakes the loop, and the control thread can still send the reason. */
        shutdown(fd, SHUT_RD);
    memif_add(&hangup->users, -1);
}

static int memif_map_zeros(uintptr_t start, uintptr_t end, size_t block) {
    /* A mapping of huge pages can only be replaced as a whole, and the kernel has rounded its size up. */
    size_t page = (size_t) sysconf(_SC_PAGESIZE), pages[2] = {page, block > page ? block : page};
    for (int i = 0; i < 2; i++) {
        size_t size = (end - start + pages[i] - 1) / pages[i] * pages[i];
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        if (mmap((void *) start, size, PROT_READ | PROT_WRITE, flags, -1, 0) != MAP_FAILED)
            return 1;
    }
    return 0;
}

/* Replace the guarded mapping at this address by zeros. Return whether there is one, and the kernel did it. */
static int memif_replace(uintptr_t address) {
    for (memif_chunk *chunk = &memif_guards; chunk != NULL; chunk = memif_get(&chunk->next)) {
        for (int i = 0; i < MEMIF_GUARDS_PER_CHUNK; i++) {
            memif_guard *guard = &chunk->guards[i];
            /* A first look, so that only handlers of the same mapping meet in a slot. */
            if (address < memif_get(&guard->start) || address >= memif_get(&guard->end))
                continue;
            int done = 0;
            memif_add(&guard->users, 1);
            if (memif_get(&guard->state) == MEMIF_GUARDING) {
                uintptr_t start = memif_get(&guard->start), end = memif_get(&guard->end);
                if (start <= address && address < end) {
                    int first = !memif_swap(&guard->lost, 1);
                    done = memif_map_zeros(start, end, guard->block);
                    if (done && first)
                        memif_hang_up(guard->hangup);
                }
            }
            memif_add(&guard->users, -1);
            if (done)
                return 1;
        }
    }
    return 0;
}

/* Set *handler to the function that handles all fatal signals, as that of Python's faulthandler does. Return whether there
 * is one.
 *
 * Such a handler reports the signal, installs the handler that was there before it, and sends the signal again. If it came
 * after us, that one is ours; and a signal that was sent does not say where the fault was. But if we ignore it, the
 * instruction faults again, and this time we see the address. */
static int memif_crash_handler(void (**handler)(int)) {
    struct sigaction segv, ill;
    if (sigaction(SIGSEGV, NULL, &segv) < 0 || sigaction(SIGILL, NULL, &ill) < 0)
        return 0;
    if (segv.sa_handler != ill.sa_handler || segv.sa_handler == SIG_DFL || segv.sa_handler == SIG_IGN)
        return 0;
    *handler = segv.sa_handler;
    return 1;
}

/* Do with a SIGBUS that is not ours what would have happened without us. */
static void memif_pass_on(int number, siginfo_t *info, void *context) {
    const struct sigaction *before = memif_get(&memif_before);
    int is_fault = info->si_code > 0, is_again = info->si_code == SI_TKILL && info->si_pid == getpid();
    int is_function = before->sa_handler != SIG_DFL && before->sa_handler != SIG_IGN;
    void (*crash)(int) = NULL;
    int is_before_crash_handler = memif_crash_handler(&crash) && crash == before->sa_handler;
    /* Ignore one signal at most between two faults, so that a program can still send itself SIGBUS. */
    if (is_again && crash != NULL && !is_before_crash_handler && !memif_swap(&memif_ignored, 1))
        return;
    /* A function that ends the process by sending the signal again does not want it back. */
    if (is_function && !(is_again && memif_get(&memif_passed_on))) {
        if (is_fault || is_before_crash_handler)
            memif_put(&memif_passed_on, 1);
        if (before->sa_flags & SA_SIGINFO)
            before->sa_sigaction(number, info, context);
        else
            before->sa_handler(number);
        return;
    }
    if (!is_fault && before->sa_handler == SIG_IGN)
        return;
    /* The default, which ends the process; the kernel does not let a fault be ignored either. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    sigaction(SIGBUS, &standard, NULL);
    if (!is_fault)
        raise(SIGBUS); /* It comes when we return; a fault repeats by itself. */
}

static void memif_on_sigbus(int number, siginfo_t *info, void *context) {
    int saved = errno;
    /* A positive code is a fault; other codes say who sent the signal. */
    if (info->si_code > 0)
        memif_put(&memif_ignored, 0);
    if (info->si_code <= 0 || !memif_replace((uintptr_t) info->si_addr))
        memif_pass_on(number, info, context);
    errno = saved;
}

/* --- installing it ----------------------------------------------------------------------------------------------- */

static int memif_is_ours(const struct sigaction *action) {
    return (action->sa_flags & SA_SIGINFO) && action->sa_sigaction == memif_on_sigbus;
}

/* Install our handler where it is missing. Called with the lock held, like the next function. */
static int memif_install(void) {
    struct sigaction current;
    if (sigaction(SIGBUS, NULL, &current) < 0)
        return -1;
    if (memif_is_ours(&current))
        return 0;
    /* If a later handler is there, it may call ours: leave it. But faulthandler.disable(), for one, restores what was
     * there before faulthandler, and so removes a handler that came after. */
    if (memif_guarding && ((current.sa_flags & SA_SIGINFO) || current.sa_handler != SIG_DFL))
        return 0;
    struct sigaction *place = memif_before == &memif_befores[0] ? &memif_befores[1] : &memif_befores[0];
    *place = current;
    memif_put(&memif_before, place);
    /* SA_ONSTACK: a thread may have too little stack left, and other runtimes in this process may insist on it. */
    struct sigaction action = {.sa_sigaction = memif_on_sigbus, .sa_mask = current.sa_mask};
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | (current.sa_handler == SIG_IGN ? SA_RESTART : current.sa_flags & SA_RESTART);
    return sigaction(SIGBUS, &action, NULL);
}

static void memif_uninstall(void) {
    struct sigaction current;
    /* If a later handler is there, it may call ours: leave it. Without guards ours passes everything on. */
    if (sigaction(SIGBUS, NULL, &current) == 0 && memif_is_ours(&current))
        sigaction(SIGBUS, memif_before, NULL);
}

static void memif_before_fork(void) { pthread_mutex_lock(&memif_lock); }

static void memif_after_fork(void) { pthread_mutex_unlock(&memif_lock); }

static void memif_after_fork_in_child(void) {
    for (memif_chunk *chunk = &memif_guards; chunk != NULL; chunk = chunk->next) {
        for (int i = 0; i < MEMIF_GUARDS_PER_CHUNK; i++) {
            memif_guard *guard = &chunk->guards[i];
            guard->users = 0;
            if (guard->state == MEMIF_GUARDING && guard->hangup != NULL) {
                guard->hangup->fd = -1;
                guard->hangup->users = 0;
            }
        }
    }
    pthread_mutex_unlock(&memif_lock);
}

/* --- guards ------------------------------------------------------------------------------------------------------ */

/* Guard a mapping. Return NULL with errno if that is impossible. */
static memif_guard *memif_guard_new(uintptr_t start, size_t size, size_t block, memif_hangup *hangup) {
    memif_guard *guard = NULL;
    pthread_mutex_lock(&memif_lock);
    if (memif_install() < 0)
        goto end;
    for (memif_chunk *chunk = &memif_guards; guard == NULL; chunk = chunk->next) {
        for (int i = 0; i < MEMIF_GUARDS_PER_CHUNK && guard == NULL; i++)
            if (memif_get(&chunk->guards[i].state) == MEMIF_FREE)
                guard = &chunk->guards[i];
        if (guard == NULL && chunk->next == NULL) {
            memif_chunk *more = calloc(1, sizeof(*more));
            if (more == NULL) {
                if (memif_guarding == 0)
                    memif_uninstall();
                errno = ENOMEM;
                goto end;
            }
            memif_put(&chunk->next, more);
        }
    }
    guard->block = block;
    guard->hangup = hangup;
    guard->lost = 0;
    memif_put(&guard->start, start);
    memif_put(&guard->end, start + size);
    memif_put(&guard->state, MEMIF_GUARDING);
    memif_guarding++;
end:
    pthread_mutex_unlock(&memif_lock);
    return guard;
}

/* Stop guarding. Return whether the mapping was lost. No handler uses the mapping or the fd when this returns. */
static int memif_guard_release(memif_guard *guard) {
    memif_put(&guard->state, MEMIF_LEAVING);
    while (memif_get(&guard->users))
        sched_yield();
    int lost = guard->lost;
    pthread_mutex_lock(&memif_lock);
    memif_put(&guard->end, 0);
    memif_put(&guard->start, 0);
    memif_put(&guard->state, MEMIF_FREE);
    if (--memif_guarding == 0)
        memif_uninstall();
    pthread_mutex_unlock(&memif_lock);
    return lost;
}

/* Forget the fd, which may then be closed. No handler uses it when this returns. */
static void memif_hangup_forget(memif_hangup *hangup) {
    memif_put(&hangup->fd, -1);
    while (memif_get(&hangup->users))
        sched_yield();
}

/* Replace a shared mapping by a private one of the same file. Return whether the kernel did it. */
static int memif_make_private(uintptr_t address, size_t size, int fd) {
    return mmap((void *) address, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, 0) != MAP_FAILED;
}

#endif
