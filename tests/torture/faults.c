/* A layer between a program and the C library that fails, cuts short, counts or records system calls on files
   below one directory. Preloaded (LD_PRELOAD), it sees what Python, SQLite and every forked stage do alike.

   It is steered through a file of one `struct control` that all processes have mapped: see faultlayer.py, which
   writes the same structure. The n-th call is counted over all processes together. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { WRITE, SYNC, RENAME, OPEN, MAP, CUT, NAME };

struct control {
    uint32_t armed, number, onwards, calls, struck, by_kind[8];
    int32_t error; /* 0: a short write where one is possible, EIO elsewhere; -1: kill */
    int32_t record; /* descriptor of the record in every process; 0: none */
    char root[1024], where[1200];
};

static struct control *control;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("DRUMLINE_FAULTS");
    int descriptor = path ? REAL(open)(path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0)
        return;
    void *page = REAL(mmap)(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    REAL(close)(descriptor);
    if (page != MAP_FAILED)
        control = page;
}

static int armed(void) { return control && __atomic_load_n(&control->armed, __ATOMIC_ACQUIRE); }

static void path_of(int descriptor, char *path, size_t size)
{
    char link[64];
    if (descriptor == AT_FDCWD)
        strcpy(link, "/proc/self/cwd");
    else
        snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = REAL(readlink)(link, path, size - 1);
    path[length > 0 ? length : 0] = 0;
}

static void absolute(int directory, const char *name, char *path, size_t size)
{
    if (name[0] == '/') {
        snprintf(path, size, "%s", name);
        return;
    }
    path_of(directory, path, size);
    size_t length = strlen(path);
    snprintf(path + length, size - length, "/%s", name);
}

static int below(const char *path)
{
    size_t length = strlen(control->root);
    return length && !strncmp(path, control->root, length) && (path[length] == '/' || !path[length]);
}

/* Return the error that this call is to have, 0 for none, -2 for a short write. */
static int fault(enum kind kind, const char *call, const char *path)
{
    if (!below(path))
        return 0;
    uint32_t number = __atomic_add_fetch(&control->calls, 1, __ATOMIC_ACQ_REL);
    __atomic_add_fetch(&control->by_kind[kind], 1, __ATOMIC_ACQ_REL);
    if (!control->number || number < control->number || (number > control->number && !control->onwards))
        return 0;
    if (!__atomic_fetch_add(&control->struck, 1, __ATOMIC_ACQ_REL))
        snprintf(control->where, sizeof control->where, "%s %s", call, path);
    if (control->error == -1)
        kill(getpid(), SIGKILL);
    if (control->error == 0)
        return kind == WRITE ? -2 : EIO;
    if (control->error == EMFILE && kind != OPEN)
        return kind == MAP ? ENOMEM : EIO;
    return control->error;
}

static int fails(enum kind kind, const char *call, const char *path)
{
    int error = fault(kind, call, path);
    if (error > 0)
        errno = error;
    return error > 0;
}

/* One entry of the record: a line "call inode offset length target-length path-length", then those bytes. */
static void noted(const char *call, int descriptor, const char *path, int64_t offset, const void *data,
                  size_t length, const char *target)
{
    if (!control->record)
        return;
    struct stat status = {0};
    if (descriptor >= 0)
        fstat(descriptor, &status);
    char head[160];
    size_t target_length = target ? strlen(target) : 0, path_length = strlen(path);
    int size = snprintf(head, sizeof head, "%s %lu %ld %zu %zu %zu\n", call, (unsigned long)status.st_ino,
                        (long)offset, length, target_length, path_length);
    struct iovec parts[] = {{head, size}, {(void *)data, length}, {(void *)target, target_length}, {(void *)path, path_length}};
    REAL(writev)(control->record, parts, 4);
}

static void note(const char *call, int descriptor, const char *path, int64_t offset, const void *data,
                 size_t length, const char *target)
{
    if (below(path))
        noted(call, descriptor, path, offset, data, length, target);
}

#define PATHS char path[4352]
#define OF(descriptor) PATHS; path_of(descriptor, path, sizeof path)
#define AT(directory, name) PATHS; absolute(directory, name, path, sizeof path)
#define TO(directory, name) char target[4352]; absolute(directory, name, target, sizeof target)

static ssize_t written(const char *call, int descriptor, const void *data, size_t size, off_t offset, int at)
{
    OF(descriptor);
    int error = fault(WRITE, call, path);
    if (error > 0) {
        errno = error;
        return -1;
    }
    if (error == -2 && size > 1)
        size /= 2;
    off_t place = at ? offset : REAL(lseek)(descriptor, 0, SEEK_CUR);
    ssize_t done = at ? REAL(pwrite)(descriptor, data, size, offset) : REAL(write)(descriptor, data, size);
    if (done > 0)
        note("write", descriptor, path, place, data, done, NULL);
    return done;
}

ssize_t write(int descriptor, const void *data, size_t size)
{
    return armed() ? written("write", descriptor, data, size, 0, 0) : REAL(write)(descriptor, data, size);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset)
{
    return armed() ? written("pwrite", descriptor, data, size, offset, 1)
                   : REAL(pwrite)(descriptor, data, size, offset);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off_t offset)
{
    return pwrite(descriptor, data, size, offset);
}

ssize_t copy_file_range(int from, off_t *from_offset, int to, off_t *to_offset, size_t size, unsigned flags)
{
    if (!armed())
        return REAL(copy_file_range)(from, from_offset, to, to_offset, size, flags);
    OF(to);
    if (fails(WRITE, "copy_file_range", path))
        return -1;
    ssize_t done = REAL(copy_file_range)(from, from_offset, to, to_offset, size, flags);
    if (done > 0 && control->record && !from_offset && !to_offset) {
        char *data = malloc(done);
        ssize_t got = pread(from, data, done, REAL(lseek)(from, 0, SEEK_CUR) - done);
        note("write", to, path, REAL(lseek)(to, 0, SEEK_CUR) - done, data, got < 0 ? 0 : got, NULL);
        free(data);
    }
    return done;
}

#define SYNCS(name, noted)                                 \
    int name(int descriptor)                               \
    {                                                      \
        if (!armed())                                      \
            return REAL(name)(descriptor);                 \
        OF(descriptor);                                    \
        if (fails(SYNC, #name, path))                      \
            return -1;                                     \
        int result = REAL(name)(descriptor);               \
        note(noted, descriptor, path, 0, NULL, 0, NULL);   \
        return result;                                     \
    }
SYNCS(fsync, "sync")
SYNCS(fdatasync, "sync")
SYNCS(syncfs, "syncfs")

int futimens(int descriptor, const struct timespec times[2])
{
    int result = REAL(futimens)(descriptor, times);
    if (armed() && !result && times) {
        OF(descriptor);
        int64_t mtime_ns = times[1].tv_sec * INT64_C(1000000000) + times[1].tv_nsec;
        note("utime", descriptor, path, mtime_ns, NULL, 0, NULL);
    }
    return result;
}

int ftruncate(int descriptor, off_t length)
{
    if (!armed())
        return REAL(ftruncate)(descriptor, length);
    OF(descriptor);
    if (fails(CUT, "ftruncate", path))
        return -1;
    int result = REAL(ftruncate)(descriptor, length);
    note("truncate", descriptor, path, length, NULL, 0, NULL);
    return result;
}

int ftruncate64(int descriptor, off_t length) { return ftruncate(descriptor, length); }

static int opened(int directory, const char *name, int flags, mode_t mode)
{
    if (!armed())
        return REAL(openat)(directory, name, flags, mode);
    AT(directory, name);
    if (fails(OPEN, "open", path))
        return -1;
    int is_new = (flags & O_CREAT) && access(path, F_OK);
    int descriptor = REAL(openat)(directory, name, flags, mode);
    if (descriptor >= 0 && is_new)
        note("create", descriptor, path, 0, NULL, 0, NULL);
    if (descriptor >= 0 && (flags & O_TRUNC))
        note("truncate", descriptor, path, 0, NULL, 0, NULL);
    return descriptor;
}

#define MODE                               \
    va_list more;                          \
    va_start(more, flags);                 \
    mode_t mode = va_arg(more, mode_t);    \
    va_end(more)

int open(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode); }
int open64(const char *name, int flags, ...) { MODE; return opened(AT_FDCWD, name, flags, mode); }
int openat(int directory, const char *name, int flags, ...) { MODE; return opened(directory, name, flags, mode); }
int openat64(int directory, const char *name, int flags, ...) { MODE; return opened(directory, name, flags, mode); }

static int moved(const char *call, int from, const char *name, int to, const char *other)
{
    AT(from, name);
    TO(to, other);
    return fails(RENAME, call, below(path) ? path : target);
}

static void note_moved(const char *call, int from, const char *name, int to, const char *other)
{
    AT(from, name);
    TO(to, other);
    if (below(target)) /* what is linked may lie elsewhere */
        noted(call, -1, path, 0, NULL, 0, target);
}

int renameat(int from, const char *name, int to, const char *other)
{
    if (!armed())
        return REAL(renameat)(from, name, to, other);
    if (moved("rename", from, name, to, other))
        return -1;
    int result = REAL(renameat)(from, name, to, other);
    if (!result)
        note_moved("rename", from, name, to, other);
    return result;
}

int rename(const char *name, const char *other) { return renameat(AT_FDCWD, name, AT_FDCWD, other); }

int linkat(int from, const char *name, int to, const char *other, int flags)
{
    if (!armed())
        return REAL(linkat)(from, name, to, other, flags);
    if (moved("link", from, name, to, other))
        return -1;
    int result = REAL(linkat)(from, name, to, other, flags);
    if (!result)
        note_moved("link", from, name, to, other);
    return result;
}

int link(const char *name, const char *other) { return linkat(AT_FDCWD, name, AT_FDCWD, other, 0); }

int symlinkat(const char *content, int to, const char *other)
{
    if (!armed())
        return REAL(symlinkat)(content, to, other);
    if (moved("symlink", to, other, to, other))
        return -1;
    int result = REAL(symlinkat)(content, to, other);
    if (!result) {
        AT(to, other);
        note("symlink", -1, path, 0, content, strlen(content), NULL);
    }
    return result;
}

int symlink(const char *content, const char *other) { return symlinkat(content, AT_FDCWD, other); }

int unlinkat(int directory, const char *name, int flags)
{
    if (!armed())
        return REAL(unlinkat)(directory, name, flags);
    AT(directory, name);
    if (fails(NAME, "unlink", path))
        return -1;
    int result = REAL(unlinkat)(directory, name, flags);
    if (!result)
        note("unlink", -1, path, 0, NULL, 0, NULL);
    return result;
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int directory, const char *name, mode_t mode)
{
    if (!armed())
        return REAL(mkdirat)(directory, name, mode);
    AT(directory, name);
    if (fails(NAME, "mkdir", path))
        return -1;
    int result = REAL(mkdirat)(directory, name, mode);
    if (!result)
        note("mkdir", -1, path, 0, NULL, 0, NULL);
    return result;
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }

void *mmap(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    if (armed() && descriptor >= 0) {
        OF(descriptor);
        if (fails(MAP, "mmap", path))
            return MAP_FAILED;
    }
    return REAL(mmap)(address, size, protection, flags, descriptor, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int descriptor, off_t offset)
{
    return mmap(address, size, protection, flags, descriptor, offset);
}
