/* Records what a disk is sure to hold while a program writes into a folder.
 *
 * Loaded before libc (LD_PRELOAD), it stands in front of the calls that make data or names last, or
 * that change names. Each such call under the folder CUT_ROOT, and each line on standard output, is
 * an event with a number. All events go one after the other. In the folder CUT_OUT it leaves
 *
 *   events      a line for each event: number, kind, inode, path, separated by tabs
 *   bytes/N     event N is 'file': the content that was flushed; 'say': what was written
 *   names/N     event N is 'folder': the names that were flushed
 *   trees/N     all names under CUT_ROOT after event N
 *
 * Names are records that end with NUL: 'd' or 'f', the inode, a space, the name. An inode that was
 * flushed is kept open, so that its number is not given to another file.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[PATH_MAX], out[PATH_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static FILE *events, *tree;
static int number;

static int (*real_fsync)(int), (*real_fdatasync)(int);
static int (*real_mkdirat)(int, const char *, mode_t);
static int (*real_unlinkat)(int, const char *, int);
static int (*real_renameat)(int, const char *, int, const char *);
static int (*real_renameat2)(int, const char *, int, const char *, unsigned);
static ssize_t (*real_write)(int, const void *, size_t);

__attribute__((constructor)) static void start(void) {
  real_fsync = dlsym(RTLD_NEXT, "fsync");
  real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
  real_mkdirat = dlsym(RTLD_NEXT, "mkdirat");
  real_unlinkat = dlsym(RTLD_NEXT, "unlinkat");
  real_renameat = dlsym(RTLD_NEXT, "renameat");
  real_renameat2 = dlsym(RTLD_NEXT, "renameat2");
  real_write = dlsym(RTLD_NEXT, "write");
  if (!getenv("CUT_ROOT")) return;
  char name[PATH_MAX + 8];
  snprintf(root, sizeof root, "%s", getenv("CUT_ROOT"));
  snprintf(out, sizeof out, "%s", getenv("CUT_OUT"));
  snprintf(name, sizeof name, "%s/events", out);
  events = fopen(name, "w");
  unsetenv("LD_PRELOAD"); /* programs that this one starts are not recorded */
}

static void path_of(int fd, char *path) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, PATH_MAX - 1);
  path[length < 0 ? 0 : length] = 0;
}

static void path_at(int folder, const char *name, char *path) {
  if (name[0] == '/' || folder == AT_FDCWD) {
    snprintf(path, PATH_MAX, "%s", name);
    return;
  }
  path_of(folder, path);
  size_t length = strlen(path);
  snprintf(path + length, PATH_MAX - length, "/%s", name);
}

static int is_inside(const char *path) {
  size_t length = strlen(root);
  return events && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static FILE *open_record(const char *kind) {
  char name[PATH_MAX + 32];
  snprintf(name, sizeof name, "%s/%s/%d", out, kind, number);
  return fopen(name, "w");
}

static int list(const char *path, const struct stat *status, int type, struct FTW *place) {
  (void)type, (void)place;
  char kind = S_ISDIR(status->st_mode) ? 'd' : 'f';
  if (path[strlen(root)])
    fprintf(tree, "%c%lu %s%c", kind, status->st_ino, path + strlen(root) + 1, 0);
  return 0;
}

/* The event just happened; `lock` is held. */
static void note(const char *kind, unsigned long inode, const char *path) {
  fprintf(events, "%d\t%s\t%lu\t%s\n", number, kind, inode, path);
  fflush(events);
  tree = open_record("trees");
  nftw(root, list, 16, FTW_PHYS);
  fclose(tree);
  number++;
}

static void copy_names(const char *path) {
  FILE *names = open_record("names");
  DIR *folder = opendir(path);
  for (struct dirent *entry; (entry = readdir(folder));)
    if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
      fprintf(names, "%c%lu %s%c", entry->d_type == DT_DIR ? 'd' : 'f', entry->d_ino,
              entry->d_name, 0);
  closedir(folder);
  fclose(names);
}

static void copy_bytes(const char *path) {
  FILE *bytes = open_record("bytes"), *file = fopen(path, "r");
  char block[1 << 16];
  for (size_t count; (count = fread(block, 1, sizeof block, file));) fwrite(block, 1, count, bytes);
  fclose(file);
  fclose(bytes);
}

static int flush(int fd, int (*call)(int)) {
  char path[PATH_MAX], link[64];
  struct stat status;
  path_of(fd, path);
  if (!is_inside(path) || fstat(fd, &status)) return call(fd);
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  pthread_mutex_lock(&lock);
  int is_folder = S_ISDIR(status.st_mode);
  if (is_folder)
    copy_names(link);
  else
    copy_bytes(link);
  int result = call(fd);
  if (!result) {
    open(link, O_PATH | O_CLOEXEC); /* is never closed */
    note(is_folder ? "folder" : "file", status.st_ino, path);
  }
  pthread_mutex_unlock(&lock);
  return result;
}

int fsync(int fd) { return flush(fd, real_fsync); }
int fdatasync(int fd) { return flush(fd, real_fdatasync); }

/* Calls that change names. */

#define CHANGE(kind, folder, name, call)     \
  char path[PATH_MAX];                       \
  path_at(folder, name, path);               \
  if (!is_inside(path)) return call;         \
  pthread_mutex_lock(&lock);                 \
  int result = call;                         \
  if (!result) note(kind, 0, path);          \
  pthread_mutex_unlock(&lock);               \
  return result

int mkdirat(int folder, const char *name, mode_t mode) {
  CHANGE("mkdir", folder, name, real_mkdirat(folder, name, mode));
}
int unlinkat(int folder, const char *name, int flags) {
  CHANGE("unlink", folder, name, real_unlinkat(folder, name, flags));
}
int renameat(int from, const char *old, int to, const char *new) {
  CHANGE("rename", to, new, real_renameat(from, old, to, new));
}
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
  CHANGE("rename", to, new, real_renameat2(from, old, to, new, flags));
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }
int rename(const char *old, const char *new) { return renameat(AT_FDCWD, old, AT_FDCWD, new); }

ssize_t write(int fd, const void *text, size_t size) {
  if (fd != STDOUT_FILENO || !events) return real_write(fd, text, size);
  pthread_mutex_lock(&lock);
  ssize_t result = real_write(fd, text, size);
  FILE *bytes = open_record("bytes");
  if (result > 0) fwrite(text, 1, result, bytes);
  fclose(bytes);
  note("say", 0, root);
  pthread_mutex_unlock(&lock);
  return result;
}
