/* Faults from where they really come from: between libc and the program.
 *
 * Loaded with LD_PRELOAD. It watches the calls that change files under one folder (and, where asked, those that read
 * them) and counts them; at a given call it can answer with an error, tear a write, or kill the process; it can write
 * every call down for a replay of a power loss; it can turn the wall clock and slow a process down. Nothing happens
 * until `campaign_arm` is called, or CAMPAIGN_SHIM is set when a program starts. The language of both:
 *
 *   root=/folder;log=/file;at=17;errno=28;sticky=1;signal=9;torn=1;reads=1;clock=-86400;clock_at=100;slow_us=500;count=/file
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_FILES 4096

static char root[PATH_MAX];
static size_t root_bytes;
static int log_file = -1, count_file = -1;
static long fail_at, fail_errno, clock_seconds, clock_at, slow_us;
static int is_sticky, sends, is_torn, counts_reads;
static atomic_long calls, clock_calls, opened;
static struct { long id; char *path; int is_append; } files[MOST_FILES];
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void parse(const char *spec) {
    char copy[4 * PATH_MAX], *rest = copy, *word;
    root_bytes = 0; log_file = count_file = -1;
    fail_at = fail_errno = clock_seconds = clock_at = slow_us = 0;
    is_sticky = sends = is_torn = counts_reads = 0;
    calls = clock_calls = 0;
    snprintf(copy, sizeof copy, "%s", spec);
    while ((word = strsep(&rest, ";"))) {
        char *value = strchr(word, '=');
        if (!value) continue;
        *value++ = 0;
        if (!strcmp(word, "root")) { snprintf(root, sizeof root, "%s", value); root_bytes = strlen(root); }
        else if (!strcmp(word, "log")) log_file = (int)syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        else if (!strcmp(word, "count")) count_file = (int)syscall(SYS_openat, AT_FDCWD, value, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
        else if (!strcmp(word, "at")) fail_at = atol(value);
        else if (!strcmp(word, "errno")) fail_errno = atol(value);
        else if (!strcmp(word, "sticky")) is_sticky = atoi(value);
        else if (!strcmp(word, "signal")) sends = atoi(value);
        else if (!strcmp(word, "torn")) is_torn = atoi(value);
        else if (!strcmp(word, "reads")) counts_reads = atoi(value);
        else if (!strcmp(word, "clock")) clock_seconds = atol(value);
        else if (!strcmp(word, "clock_at")) clock_at = atol(value);
        else if (!strcmp(word, "slow_us")) slow_us = atol(value);
    }
}

__attribute__((constructor)) static void at_start(void) {
    const char *spec = getenv("CAMPAIGN_SHIM");
    if (spec && *spec) parse(spec);
}

void campaign_arm(const char *spec) { parse(spec); }
long campaign_calls(void) { return calls; }

/* Absolute name of a path that a call was given, if it is under the watched folder. */
static int watched(int folder, const char *path, char *whole) {
    if (!root_bytes || !path) return 0;
    if (path[0] == '/') snprintf(whole, PATH_MAX, "%s", path);
    else {
        char base[PATH_MAX];
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else if (folder >= 0 && folder < MOST_FILES && files[folder].path) snprintf(base, sizeof base, "%s", files[folder].path);
        else return 0;
        if (snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return !strncmp(whole, root, root_bytes) && (whole[root_bytes] == '/' || !whole[root_bytes]);
}

static long id_of(int fd) { return fd >= 0 && fd < MOST_FILES && files[fd].path ? files[fd].id : 0; }

static void note(const char *head, const void *data, size_t bytes) {
    if (log_file < 0) return;
    struct iovec parts[2] = {{(void *)head, strlen(head)}, {(void *)data, bytes}};
    syscall(SYS_writev, log_file, parts, bytes ? 2 : 1);
}

enum { GO_ON, FAIL, TEAR };

/* Count a call, and say what becomes of it. The process may not survive this. */
static int decide(int can_tear, int is_removal) {
    if (slow_us) { struct timespec pause = {slow_us / 1000000, slow_us % 1000000 * 1000}; syscall(SYS_nanosleep, &pause, NULL); }
    /* A full disk lets files be removed: what is not an error of every call is not one of a removal. */
    if (is_removal && fail_errno && fail_errno != EROFS && fail_errno != EIO) return GO_ON;
    long number = ++calls;
    if (count_file >= 0) syscall(SYS_write, count_file, ".", 1);
    if (!fail_at || (is_sticky ? number < fail_at : number != fail_at)) return GO_ON;
    if (sends) {
        if (can_tear && is_torn) return TEAR;
        syscall(SYS_kill, getpid(), sends);
        return GO_ON;
    }
    return FAIL;
}

static int opening(int folder, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX], head[PATH_MAX + 64];
    if (!watched(folder, path, whole)) return (int)syscall(SYS_openat, folder, path, flags, mode);
    int changes = (flags & (O_CREAT | O_TRUNC)) != 0;
    if (changes && !counts_reads && decide(0, 0) == FAIL) { errno = (int)fail_errno; return -1; }
    if (!changes && counts_reads && !(flags & O_DIRECTORY) && decide(0, 0) == FAIL) { errno = (int)fail_errno; return -1; }
    pthread_mutex_lock(&one_at_a_time);
    struct stat before;
    int is_new = syscall(SYS_newfstatat, folder, path, &before, 0) != 0;
    int fd = (int)syscall(SYS_openat, folder, path, flags, mode), kept = errno;
    if (fd >= 0 && fd < MOST_FILES) {
        free(files[fd].path);
        files[fd].path = strdup(whole);
        files[fd].id = (long)getpid() << 24 | ++opened;
        int length = snprintf(head, sizeof head, "O %ld %d %d %zu\n", files[fd].id, is_new, (flags & O_TRUNC) != 0, strlen(whole));
        (void)length;
        note(head, whole, strlen(whole));
    }
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
    return fd;
}

#define MODE va_list list; va_start(list, flags); mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(list, mode_t) : 0; va_end(list)
int open(const char *path, int flags, ...) { MODE; return opening(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE; return opening(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE; return opening(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE; return opening(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return opening(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

int close(int fd) {
    if (fd >= 0 && fd < MOST_FILES && files[fd].path) { free(files[fd].path); files[fd].path = NULL; }
    return (int)syscall(SYS_close, fd);
}

static void note_data(int fd, const void *data, ssize_t done, off_t at) {
    char head[128];
    if (done <= 0 || log_file < 0) return;
    if (at < 0) at = syscall(SYS_lseek, fd, 0, SEEK_CUR) - done;
    snprintf(head, sizeof head, "W %ld %lld %zd\n", id_of(fd), (long long)at, done);
    note(head, data, (size_t)done);
}

static ssize_t writing(int fd, const void *data, size_t bytes, off_t at) {
    long call = at < 0 ? SYS_write : SYS_pwrite64;
    if (!id_of(fd)) return syscall(call, fd, data, bytes, at);
    int what = counts_reads ? GO_ON : decide(1, 0);
    if (what == FAIL) { errno = (int)fail_errno; return -1; }
    if (what == TEAR) { syscall(call, fd, data, bytes / 2, at); syscall(SYS_kill, getpid(), SIGKILL); }
    pthread_mutex_lock(&one_at_a_time);
    ssize_t done = syscall(call, fd, data, bytes, at);
    int kept = errno;
    note_data(fd, data, done, at);
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
    return done;
}
ssize_t write(int fd, const void *data, size_t bytes) { return writing(fd, data, bytes, -1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return writing(fd, data, bytes, at); }
ssize_t pwrite64(int fd, const void *data, size_t bytes, off_t at) { return writing(fd, data, bytes, at); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (!id_of(fd)) return syscall(SYS_writev, fd, parts, count);
    ssize_t sum = 0;
    for (int n = 0; n < count; n++) {
        ssize_t done = writing(fd, parts[n].iov_base, parts[n].iov_len, -1);
        if (done < 0) return sum ? sum : -1;
        sum += done;
        if ((size_t)done < parts[n].iov_len) break;
    }
    return sum;
}

/* Copies inside the kernel would hide the data from the log: callers of these all have a way without. */
ssize_t sendfile(int to, int from, off_t *at, size_t bytes) {
    if (root_bytes) { errno = ENOSYS; return -1; }
    return syscall(SYS_sendfile, to, from, at, bytes);
}
ssize_t sendfile64(int to, int from, off_t *at, size_t bytes) { return sendfile(to, from, at, bytes); }
ssize_t copy_file_range(int from, off_t *a, int to, off_t *b, size_t bytes, unsigned flags) {
    if (root_bytes) { errno = ENOSYS; return -1; }
    return syscall(SYS_copy_file_range, from, a, to, b, bytes, flags);
}

ssize_t read(int fd, void *data, size_t bytes) {
    if (counts_reads && id_of(fd) && decide(0, 0) == FAIL) { errno = (int)fail_errno; return -1; }
    return syscall(SYS_read, fd, data, bytes);
}
ssize_t pread(int fd, void *data, size_t bytes, off_t at) {
    if (counts_reads && id_of(fd) && decide(0, 0) == FAIL) { errno = (int)fail_errno; return -1; }
    return syscall(SYS_pread64, fd, data, bytes, at);
}
ssize_t pread64(int fd, void *data, size_t bytes, off_t at) { return pread(fd, data, bytes, at); }

static int of_file(int fd, long call, char letter, off_t length) {
    char head[128];
    if (!id_of(fd)) return (int)syscall(call, fd, length);
    if (!counts_reads && decide(0, 0) == FAIL) { errno = (int)fail_errno; return -1; }
    pthread_mutex_lock(&one_at_a_time);
    /* Nothing here loses power: the disk is not waited for, only the call is written down. */
    int done = letter == 'S' ? 0 : (int)syscall(call, fd, length), kept = errno;
    if (!done) { snprintf(head, sizeof head, "%c %ld %lld\n", letter, id_of(fd), (long long)length); note(head, NULL, 0); }
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
    return done;
}
int fsync(int fd) { return of_file(fd, SYS_fsync, 'S', 0); }
int fdatasync(int fd) { return of_file(fd, SYS_fdatasync, 'S', 0); }
int ftruncate(int fd, off_t length) { return of_file(fd, SYS_ftruncate, 'T', length); }
int ftruncate64(int fd, off_t length) { return of_file(fd, SYS_ftruncate, 'T', length); }

/* One or two names: letter R renames, U unlinks, D removes a folder, M makes one. */
static int of_names(char letter, int folder, const char *old, int other, const char *new, long call, long a, long b) {
    char first[PATH_MAX], second[PATH_MAX], head[64], both[2 * PATH_MAX + 8];
    if (!watched(folder, old, first)) return (int)(letter == 'R' ? syscall(call, folder, old, other, new, a) : syscall(call, folder, old, a, b));
    if (!counts_reads && decide(0, letter == 'U' || letter == 'D') == FAIL) { errno = (int)fail_errno; return -1; }
    pthread_mutex_lock(&one_at_a_time);
    int done = (int)(letter == 'R' ? syscall(call, folder, old, other, new, a) : syscall(call, folder, old, a, b)), kept = errno;
    if (!done) {
        if (letter == 'R' && watched(other, new, second)) snprintf(both, sizeof both, "%s%c%s", first, '\n', second);
        else snprintf(both, sizeof both, "%s", first);
        snprintf(head, sizeof head, "%c %zu\n", letter, strlen(both));
        note(head, both, strlen(both));
    }
    pthread_mutex_unlock(&one_at_a_time);
    errno = kept;
    return done;
}
int rename(const char *old, const char *new) { return of_names('R', AT_FDCWD, old, AT_FDCWD, new, SYS_renameat2, 0, 0); }
int renameat(int a, const char *old, int b, const char *new) { return of_names('R', a, old, b, new, SYS_renameat2, 0, 0); }
int unlink(const char *path) { return of_names('U', AT_FDCWD, path, 0, NULL, SYS_unlinkat, 0, 0); }
int rmdir(const char *path) { return of_names('D', AT_FDCWD, path, 0, NULL, SYS_unlinkat, AT_REMOVEDIR, 0); }
int unlinkat(int folder, const char *path, int flags) {
    return of_names(flags & AT_REMOVEDIR ? 'D' : 'U', folder, path, 0, NULL, SYS_unlinkat, flags, 0);
}
int mkdir(const char *path, mode_t mode) { return of_names('M', AT_FDCWD, path, 0, NULL, SYS_mkdirat, mode, 0); }
int mkdirat(int folder, const char *path, mode_t mode) { return of_names('M', folder, path, 0, NULL, SYS_mkdirat, mode, 0); }

/* The wall clock jumps after so many questions; the monotonic one never does. */
static long jump(void) { return clock_seconds && ++clock_calls > clock_at ? clock_seconds : 0; }
int clock_gettime(clockid_t which, struct timespec *now) {
    int done = (int)syscall(SYS_clock_gettime, which, now);
    if (!done && which == CLOCK_REALTIME) now->tv_sec += jump();
    return done;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int done = (int)syscall(SYS_gettimeofday, now, zone);
    if (!done) now->tv_sec += jump();
    return done;
}
time_t time(time_t *now) {
    struct timespec value;
    clock_gettime(CLOCK_REALTIME, &value);
    if (now) *now = value.tv_sec;
    return value.tv_sec;
}
