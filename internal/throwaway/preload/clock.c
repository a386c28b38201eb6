/*
 * A server loads this library with LD_PRELOAD. It adds a step to the wall clock that the server
 * sees. The step is the first word of the file named by THROWAWAY_CLOCK, in nanoseconds, and takes
 * effect as soon as it is written. The monotonic clock stays as it is, as when an operator sets the
 * host's clock.
 *
 * No function here allocates, locks or needs initialisation: the server's allocator asks for the
 * time while it starts. That is where libfaketime hangs or fails with jemalloc.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND INT64_C(1000000000)

static int64_t *volatile words; /* the step, and 1 once a server is attached */

__attribute__((constructor)) static void attach(void)
{
	const char *path = getenv("THROWAWAY_CLOCK");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	if (fd < 0)
		return;
	void *map = mmap(NULL, 2 * sizeof(int64_t), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (map == MAP_FAILED)
		return;
	words = map;
	__atomic_store_n(&words[1], 1, __ATOMIC_SEQ_CST);
}

int clock_gettime(clockid_t id, struct timespec *t)
{
	int result = syscall(SYS_clock_gettime, id, t);
	if (result == 0 && words && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
		int64_t now = t->tv_sec * SECOND + t->tv_nsec +
			__atomic_load_n(&words[0], __ATOMIC_SEQ_CST);
		t->tv_sec = now / SECOND;
		t->tv_nsec = now % SECOND;
	}
	return result;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone)
{
	struct timespec now;
	(void)zone;
	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	t->tv_sec = now.tv_sec;
	t->tv_usec = now.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *t)
{
	struct timespec now;
	if (clock_gettime(CLOCK_REALTIME, &now))
		return -1;
	if (t)
		*t = now.tv_sec;
	return now.tv_sec;
}
