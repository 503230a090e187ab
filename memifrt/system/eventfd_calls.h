/* The system calls of an eventfd that is shared with a peer: none of them waits, whatever the peer has done to the file,
 * except where preadv2 does not read an eventfd (eventfd.py).
 * The twin of kick.py and of SharedCalls in eventfd.py, which say why each call is the one that it is. */

#ifndef MEMIF_EVENTFD_CALLS_H
#define MEMIF_EVENTFD_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <poll.h>
#include <stdint.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
#define RWF_NOWAIT 8
#endif
/* Room for completions. A kick that finds no room collects them first. */
#define MEMIF_AIO_SLOTS 512

/* This process's context for asynchronous I/O; 0: there is none, or none yet. */
static aio_context_t memif_aio_context;

/* Make an eventfd readable by an operation that completes at once. Return whether the kernel accepted it. */
static inline int memif_kick(int fd) {
    struct iocb operation, *operations[1] = {&operation};
    struct io_event collected[64];
    aio_context_t context = memif_aio_context;
    if (!context) return 0;
    memset(&operation, 0, sizeof operation);
    operation.aio_lio_opcode = IOCB_CMD_PREAD; /* of 0 bytes: it fails, and completes with that */
    operation.aio_fildes = (uint32_t) fd;
    operation.aio_flags = IOCB_FLAG_RESFD;
    operation.aio_resfd = (uint32_t) fd;
    if (syscall(SYS_io_submit, context, 1L, operations) == 1) return 1;
    while (syscall(SYS_io_getevents, context, 0L, 64L, collected, NULL) == 64) {}
    return syscall(SYS_io_submit, context, 1L, operations) == 1;
}

/* Make an eventfd readable by a write, where there is no other way. See EventFd.notify: a peer can make this wait. */
static inline void memif_kick_by_write(int fd) {
    struct pollfd one = {fd, POLLOUT, 0};
    uint64_t count = 1;
    if (poll(&one, 1, 0) <= 0) return; /* the counter is full: it is readable already */
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (write(fd, &count, sizeof count) < 0) return;
}

/* Wait until one of two fds (negative: none) is readable, at most for so many milliseconds. */
static inline void memif_wait(int first, int second, int milliseconds) {
    struct pollfd both[2] = {{first, POLLIN, 0}, {second, POLLIN, 0}};
    poll(both, 2, milliseconds);
}

/* Return a duplicate of an fd, which a child's exec closes; -1 if there is none. */
static inline int memif_duplicate(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

/* Return the monotonic clock in nanoseconds. */
static inline int64_t memif_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t) now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Return whether preadv2 is missing (ENOSYS), refused by a seccomp profile (EPERM, EACCES), or does not read an eventfd
 * without waiting (EOPNOTSUPP): under QEMU, for one. */
static inline int memif_lacks_preadv2(int failed) {
    return failed == ENOSYS || failed == EOPNOTSUPP || failed == EPERM || failed == EACCES;
}

/* Read the counter without preadv2. A peer that clears O_NONBLOCK and reads in between can make this wait. */
static inline int memif_drain_by_read(int fd) {
    struct pollfd one = {fd, POLLIN, 0};
    uint64_t count;
    int ready = poll(&one, 1, 0);
    if (ready < 0) return errno == EINTR ? 0 : -errno;
    if (!ready) return 0;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    if (read(fd, &count, sizeof count) > 0) return 1;
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

/* Read the counter, which makes the eventfd unreadable. Return whether it was readable; -errno if the read failed. */
static inline int memif_drain(int fd) {
    uint64_t count;
    struct iovec into = {&count, sizeof count};
    if (syscall(SYS_preadv2, fd, &into, 1L, -1L, -1L, RWF_NOWAIT) > 0) return 1;
    if (memif_lacks_preadv2(errno)) return memif_drain_by_read(fd);
    return errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

/* Return whether poll(2) reports one of these events now; -errno if it failed. */
static inline int memif_polls(int fd, short events) {
    struct pollfd one = {fd, events, 0};
    int ready = poll(&one, 1, 0);
    return ready < 0 ? (errno == EINTR ? 0 : -errno) : ready;
}

/* Create this process's context, and test it with one kick, because not every kernel accepts an eventfd here. Return 0,
 * or the errno of what failed. */
static inline int memif_create_aio_context(void) {
    aio_context_t context = 0;
    uint64_t count = 0;
    int fd, failed = 0;
    if (memif_aio_context) return 0;
    fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd < 0) return errno;
    if (syscall(SYS_io_setup, (long) MEMIF_AIO_SLOTS, &context)) {
        failed = errno;
    } else {
        memif_aio_context = context;
        if (!memif_kick(fd) || read(fd, &count, sizeof count) != sizeof count || count != 1) {
            failed = EOPNOTSUPP; /* a completed operation does not reach the eventfd */
            memif_aio_context = 0;
            syscall(SYS_io_destroy, context);
        }
    }
    close(fd);
    return failed;
}

/* Forget the context in a forked child: the kernel does not pass it on. */
static inline void memif_forget_aio_context(void) { memif_aio_context = 0; }

#endif
