/*
 * The one client of the bench: does one workload in one directory and says how long it took.
 *
 *     client [-c | -w] [-d] [-p] [-a CPU] DIRECTORY WORKLOAD COUNT [PROGRAM ARGUMENT...]
 *
 * The last line on standard output is "WORKLOAD OPS BEGIN END", the times in seconds of CLOCK_MONOTONIC, which all
 * processes share.
 *
 * Rules: the clock (CLOCK_MONOTONIC) runs only around the calls that the workload is named for; names, buffers, the
 * directory's descriptor and the big file are made ready before.  Every path is one component below that descriptor, so
 * an operation costs one lookup.  Nothing is retried, a short read or write is an error, and an error is fatal.
 *
 *     -c   cold: drop the kernel's clean pages, dentries and inodes first (needs root)
 *     -w   warm: stat every file first, untimed; before seqwrite, write the file once, so that its memory is there
 *     -d   O_DIRECT on the big file
 *     -p   say "ready" and wait for a byte on standard input before the clock starts: so several start together
 *     -a   stay on this CPU
 *
 * The workload exec runs a program in the directory and credits COUNT operations to it; its output comes first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct timespec settle = { .tv_nsec = 50000000 }; /* for daemons that collect FORGETs first */

enum { BLOCK = 4096, MIB = 1 << 20, NAME_SIZE = 16, DRAIN = 32 };

struct job {
	const char *path;          /* the directory, for messages */
	int dir;
	int big;                   /* the big file, only in its workloads */
	int direct;                /* O_DIRECT or 0 */
	int wait;                  /* for a byte before the clock starts */
	long count;
	char **program;            /* what exec runs, NULL at the end */
	char (*names)[NAME_SIZE];
	char *buffer;              /* MIB bytes, aligned for O_DIRECT */
	struct timespec begin, end;
};

typedef long workload_fn(struct job *job);

static const char BIG[] = "big";

static void fail(const struct job *job, const char *call, const char *name)
{
	fprintf(stderr, "client: %s %s/%s: %s (errno %d)\n", call, job->path, name, strerror(errno), errno);
	exit(1);
}

static void fail_short(const struct job *job, const char *call, const char *name, ssize_t got)
{
	fprintf(stderr, "client: %s %s/%s: short, %zd bytes (errno 0)\n", call, job->path, name, got);
	exit(1);
}

static void transferred(const struct job *job, const char *call, const char *name, ssize_t got, ssize_t wanted)
{
	if (got == -1)
		fail(job, call, name);
	if (got != wanted)
		fail_short(job, call, name, got);
}

static void start(struct job *job)
{
	char byte;

	if (job->wait) {
		puts("ready");
		fflush(stdout);
		if (read(STDIN_FILENO, &byte, 1) != 1) {
			fputs("client: nobody said go\n", stderr);
			exit(1);
		}
	}
	clock_gettime(CLOCK_MONOTONIC, &job->begin);
}

static void stop(struct job *job)
{
	clock_gettime(CLOCK_MONOTONIC, &job->end);
}

static int open_file(const struct job *job, const char *name, int flags)
{
	int fd = openat(job->dir, name, flags | O_CLOEXEC, 0644);

	if (fd == -1)
		fail(job, "open", name);
	return fd;
}

static void close_file(const struct job *job, const char *name, int fd)
{
	if (close(fd) == -1)
		fail(job, "close", name);
}

static void stat_file(const struct job *job, const char *name)
{
	struct stat st;

	if (fstatat(job->dir, name, &st, AT_SYMLINK_NOFOLLOW) == -1)
		fail(job, "fstatat", name);
}

/* Many small files. */

static void create_one(const struct job *job, const char *name)
{
	close_file(job, name, open_file(job, name, O_CREAT | O_EXCL | O_WRONLY));
}

static void write_one(const struct job *job, const char *name)
{
	int fd = open_file(job, name, O_WRONLY);

	transferred(job, "write", name, write(fd, job->buffer, BLOCK), BLOCK);
	close_file(job, name, fd);
}

static void read_one(const struct job *job, const char *name)
{
	int fd = open_file(job, name, O_RDONLY);

	transferred(job, "read", name, read(fd, job->buffer, BLOCK), BLOCK);
	close_file(job, name, fd);
}

static void unlink_one(const struct job *job, const char *name)
{
	if (unlinkat(job->dir, name, 0) == -1)
		fail(job, "unlink", name);
}

static long for_each(struct job *job, void (*one)(const struct job *, const char *))
{
	start(job);
	for (long i = 0; i < job->count; i++)
		one(job, job->names[i]);
	stop(job);
	return job->count;
}

static long do_create(struct job *job) { return for_each(job, create_one); }
static long do_write4k(struct job *job) { return for_each(job, write_one); }
static long do_stat(struct job *job) { return for_each(job, stat_file); }
static long do_read4k(struct job *job) { return for_each(job, read_one); }
static long do_unlink(struct job *job) { return for_each(job, unlink_one); }

static DIR *open_directory(const struct job *job)
{
	int fd = open_file(job, ".", O_RDONLY | O_DIRECTORY);
	DIR *stream = fdopendir(fd);

	if (!stream)
		fail(job, "opendir", ".");
	return stream;
}

static long do_readdirstat(struct job *job)
{
	struct dirent *entry;
	long ops = 0;

	start(job);
	DIR *stream = open_directory(job);
	while (errno = 0, (entry = readdir(stream)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		stat_file(job, entry->d_name);
		ops++;
	}
	if (errno)
		fail(job, "readdir", ".");
	closedir(stream);
	stop(job);
	if (ops != job->count) {
		fprintf(stderr, "client: readdir %s/.: %ld entries, not %ld (errno 0)\n", job->path, ops, job->count);
		exit(1);
	}
	return ops;
}

/* One big file: opened outside the clock; the page cache of what was written before is dropped with fadvise. */

static void open_big(struct job *job, int flags)
{
	job->big = open_file(job, BIG, flags | job->direct);
	errno = posix_fadvise(job->big, 0, 0, POSIX_FADV_DONTNEED);
	if (errno)
		fail(job, "fadvise", BIG);
}

static uint64_t next_random(uint64_t *state)
{
	/* xorshift64: a fixed seed, so every contender sees the same offsets */
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static uint64_t big_blocks(const struct job *job)
{
	struct stat st;

	if (fstat(job->big, &st) == -1)
		fail(job, "fstat", BIG);
	if (st.st_size < BLOCK)
		fail_short(job, "fstat", BIG, st.st_size);
	return (uint64_t) st.st_size / BLOCK;
}

static void write_all(struct job *job)
{
	for (long i = 0; i < job->count; i++)
		transferred(job, "write", BIG, write(job->big, job->buffer, MIB), MIB);
}

static long do_seqwrite(struct job *job)
{
	open_big(job, O_CREAT | O_TRUNC | O_WRONLY);
	start(job);
	write_all(job);
	if (fdatasync(job->big) == -1)
		fail(job, "fdatasync", BIG);
	stop(job);
	return job->count;
}

static long do_seqread(struct job *job)
{
	open_big(job, O_RDONLY);
	start(job);
	for (long i = 0; i < job->count; i++)
		transferred(job, "read", BIG, read(job->big, job->buffer, MIB), MIB);
	stop(job);
	return job->count;
}

static long do_randread(struct job *job)
{
	uint64_t state = 0x9e3779b97f4a7c15u;

	open_big(job, O_RDONLY);
	uint64_t blocks = big_blocks(job);
	start(job);
	for (long i = 0; i < job->count; i++) {
		off_t at = (off_t) (next_random(&state) % blocks) * BLOCK;
		transferred(job, "pread", BIG, pread(job->big, job->buffer, BLOCK, at), BLOCK);
	}
	stop(job);
	return job->count;
}

static long do_randwrite(struct job *job)
{
	uint64_t state = 0x9e3779b97f4a7c15u;

	open_big(job, O_WRONLY);
	uint64_t blocks = big_blocks(job);
	start(job);
	for (long i = 0; i < job->count; i++) {
		off_t at = (off_t) (next_random(&state) % blocks) * BLOCK;
		transferred(job, "pwrite", BIG, pwrite(job->big, job->buffer, BLOCK, at), BLOCK);
	}
	stop(job);
	return job->count;
}

/* The whole mount, and whole programs. */

static void statfs_one(const struct job *job, const char *name)
{
	struct statvfs vfs;

	if (fstatvfs(job->dir, &vfs) == -1)
		fail(job, "fstatvfs", name);
}

static long do_statfs(struct job *job) { return for_each(job, statfs_one); }

static long do_exec(struct job *job)
{
	int status;

	start(job);
	pid_t pid = fork();
	if (pid == 0) {
		if (fchdir(job->dir) == 0)
			execvp(job->program[0], job->program);
		fail(job, "exec", job->program[0]);
	}
	if (pid == -1 || waitpid(pid, &status, 0) != pid)
		fail(job, "fork", job->program[0]);
	stop(job);
	if (status) {
		fprintf(stderr, "client: %s in %s: wait status %#x\n", job->program[0], job->path, (unsigned) status);
		exit(1);
	}
	return job->count;
}

/* What -w does before a workload. */

static void warm_files(struct job *job)
{
	for (long i = 0; i < job->count; i++)
		stat_file(job, job->names[i]);
}

static void warm_memory(struct job *job)
{
	open_big(job, O_CREAT | O_TRUNC | O_WRONLY);
	write_all(job);
	close_file(job, BIG, job->big);
}

static const struct workload {
	const char *name;
	workload_fn *run;
	void (*warm)(struct job *);    /* NULL: -w means nothing */
	int big;                       /* works on the big file, -d allowed */
} WORKLOADS[] = {
	{ "create",      do_create,       NULL,        0 },
	{ "write4k",     do_write4k,      warm_files,  0 },
	{ "stat",        do_stat,         warm_files,  0 },
	{ "read4k",      do_read4k,       warm_files,  0 },
	{ "readdirstat", do_readdirstat,  NULL,        0 },
	{ "unlink",      do_unlink,       warm_files,  0 },
	{ "seqwrite",    do_seqwrite,     warm_memory, 1 },
	{ "seqread",     do_seqread,      NULL,        1 },
	{ "randread",    do_randread,     NULL,        1 },
	{ "randwrite",   do_randwrite,    NULL,        1 },
	{ "statfs",      do_statfs,       NULL,        0 },
	{ "exec",        do_exec,         NULL,        0 },
	{ NULL, NULL, NULL, 0 },
};

/*
 * Drop what the kernel remembers, then let the daemon digest it: dropping inodes queues FORGETs, and fuse_dev_do_read
 * serves them between requests (16 forgets to 8 requests), so a few untimed requests push them through.
 */
static void drop(const struct job *job)
{
	static const char knob[] = "/proc/sys/vm/drop_caches";
	int fd = open(knob, O_WRONLY | O_CLOEXEC);

	if (fd == -1 || write(fd, "3", 1) != 1) {
		fprintf(stderr, "client: write %s: %s (errno %d)\n", knob, strerror(errno), errno);
		exit(1);
	}
	close(fd);
	for (int i = 0; i < DRAIN; i++)
		statfs_one(job, ".");
	nanosleep(&settle, NULL);
}

/* Twice: what a daemon holds open of the source can only be dropped once it has let go. */
static void make_cold(const struct job *job)
{
	drop(job);
	drop(job);
}

static void prepare(struct job *job)
{
	job->dir = open(job->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (job->dir == -1)
		fail(job, "open", ".");
	job->names = calloc((size_t) job->count, sizeof(*job->names));
	if (!job->names || posix_memalign((void **) &job->buffer, BLOCK, MIB)) {
		fprintf(stderr, "client: no memory for %ld names\n", job->count);
		exit(1);
	}
	for (long i = 0; i < job->count; i++)
		snprintf(job->names[i], NAME_SIZE, "f%08lu", (unsigned long) i % 100000000);
	memset(job->buffer, 0x5a, MIB);
}

static int usage(void)
{
	fputs("usage: client [-c | -w] [-d] [-p] [-a CPU] DIRECTORY WORKLOAD COUNT [PROGRAM ARGUMENT...]\nworkloads:",
	      stderr);
	for (const struct workload *w = WORKLOADS; w->name; w++)
		fprintf(stderr, " %s", w->name);
	fputc('\n', stderr);
	return 2;
}

static const struct workload *find_workload(const char *name)
{
	for (const struct workload *w = WORKLOADS; w->name; w++)
		if (!strcmp(w->name, name))
			return w;
	return NULL;
}

static void stay_on(long cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET((size_t) cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set) == -1) {
		fprintf(stderr, "client: sched_setaffinity %ld: %s (errno %d)\n", cpu, strerror(errno), errno);
		exit(1);
	}
}

static double seconds(const struct timespec *time)
{
	return (double) time->tv_sec + (double) time->tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	struct job job = { .big = -1 };
	int cold = 0, warm = 0, option;

	while ((option = getopt(argc, argv, "+cwdpa:")) != -1) {
		cold |= option == 'c';
		warm |= option == 'w';
		job.direct |= option == 'd' ? O_DIRECT : 0;
		job.wait |= option == 'p';
		if (option == 'a')
			stay_on(atol(optarg));
		if (option == '?')
			return usage();
	}
	if (argc - optind < 3 || (cold && warm))
		return usage();
	const struct workload *workload = find_workload(argv[optind + 1]);
	job.path = argv[optind];
	job.count = atol(argv[optind + 2]);
	job.program = argv + optind + 3;
	if (!workload || job.count < 1 || (job.direct && !workload->big) || (warm && !workload->warm)
	    || (workload->run == do_exec) != (*job.program != NULL))
		return usage();

	prepare(&job);
	if (cold)
		make_cold(&job);
	if (warm)
		workload->warm(&job);
	long ops = workload->run(&job);
	printf("%s %ld %.9f %.9f\n", workload->name, ops, seconds(&job.begin), seconds(&job.end));
	return 0;
}
