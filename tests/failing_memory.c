/* Memory that runs out on demand: preloaded (LD_PRELOAD), this replaces the C library's allocation.

   A test calls `fail_memory` through ctypes. The functions it replaces count the requests of at
   least so many bytes, of all threads, and let one of them fail, or all from there on. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

#define CALLER __builtin_return_address(0)

static atomic_long first_failure = 0; /* 0: none fails, and none is counted */
static atomic_long failures = 0;      /* how many fail from there on */
static atomic_long least_size = 0;
static atomic_long seen = 0;
static pid_t thread = 0;  /* whose requests: the number of a thread, 0 for all */
static char library[64]; /* whose requests: how the name of the file begins, "" for all */

/* Let requests number `first` to `first + count - 1` of at least `size` bytes fail. */
void fail_memory(long first, long count, long size, const char *of_library, int of_this_thread)
{
    first_failure = 0;
    seen = 0;
    failures = count;
    least_size = size;
    thread = of_this_thread ? (pid_t)syscall(SYS_gettid) : 0;
    strncpy(library, of_library, sizeof library - 1);
    first_failure = first;
}

/* End the failures; return how many requests were seen. */
long stop_failing(void)
{
    first_failure = 0;
    return seen;
}

static int is_of_library(const void *caller)
{
    Dl_info found;
    if (library[0] == 0)
        return 1;
    if (dladdr(caller, &found) == 0)
        return 0;
    const char *slash = strrchr(found.dli_fname, '/');
    return strncmp(slash ? slash + 1 : found.dli_fname, library, strlen(library)) == 0;
}

static int fails(size_t size, const void *caller)
{
    long first = first_failure;
    if (first == 0 || (long)size < least_size || !is_of_library(caller))
        return 0;
    if (thread != 0 && thread != (pid_t)syscall(SYS_gettid))
        return 0;
    long number = atomic_fetch_add(&seen, 1) + 1;
    if (number < first || number - first >= failures)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(size, CALLER) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails(count * size, CALLER) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size)
{
    return fails(size, CALLER) ? NULL : __libc_realloc(block, size);
}

void *memalign(size_t alignment, size_t size)
{
    return fails(size, CALLER) ? NULL : __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return fails(size, CALLER) ? NULL : __libc_memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size)
{
    if (fails(size, CALLER))
        return ENOMEM;
    *block = __libc_memalign(alignment, size);
    return *block == NULL ? ENOMEM : 0;
}

void *mmap(void *address, size_t size, int protection, int flags, int file, off_t offset)
{
    if (fails(size, CALLER))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}

void *mmap64(void *address, size_t size, int protection, int flags, int file, off64_t offset)
{
    if (fails(size, CALLER))
        return MAP_FAILED;
    return (void *)syscall(SYS_mmap, address, size, protection, flags, file, offset);
}
