/* SPDX-License-Identifier: Apache-2.0
 *
 * The state directory as files: the lock under which every change is made,
 * and reading, writing and removing below it.  The kernel lets the lock go when
 * its holder dies.  Paths are walked by descriptor and links never followed.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

int vgpu_state_name_is_valid(const char *name)
{
	size_t length = strnlen(name, VGPU_NAME_SIZE);

	return length && length < VGPU_NAME_SIZE && name[0] != '.' && name[0] != '-' &&
	       strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
			    "0123456789._-") == length;
}

int vgpu_state_open(const char *state, int *lock)
{
	int top, tenants;

	if (mkdir(state, 0755) && errno != EEXIST)
		return -errno;
	top = open(state, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (top < 0)
		return -errno;
	if (mkdirat(top, "tenants", 0755) && errno != EEXIST)
		goto failed;
	*lock = openat(top, "lock", O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (*lock < 0)
		goto failed;
	while (flock(*lock, LOCK_EX))
		if (errno != EINTR) {
			close(*lock);
			goto failed;
		}
	tenants = openat(top, "tenants", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (tenants < 0) {
		int error = errno;

		close(*lock);
		close(top);
		return -error;
	}
	close(top);
	return tenants;
failed:
	tenants = -errno;
	close(top);
	return tenants;
}

DIR *vgpu_state_list(int parent, const char *name)
{
	int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	DIR *directory = fd < 0 ? NULL : fdopendir(fd);

	if (!directory && fd >= 0)
		close(fd);
	return directory;
}

void vgpu_state_remove_tree(int parent, const char *name, int depth)
{
	DIR *directory = vgpu_state_list(parent, name);
	struct dirent *entry;

	while (directory && (entry = readdir(directory))) {
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (unlinkat(dirfd(directory), entry->d_name, 0) && depth)
			vgpu_state_remove_tree(dirfd(directory), entry->d_name, depth - 1);
	}
	if (directory)
		closedir(directory);
	if (unlinkat(parent, name, AT_REMOVEDIR))
		unlinkat(parent, name, 0); /* it was none */
}

int vgpu_state_remove_tenant(int tenants, const char *name)
{
	char gone[VGPU_NAME_SIZE + 8];

	snprintf(gone, sizeof(gone), ".gone-%s", name);
	vgpu_state_remove_tree(tenants, gone, 2);
	if (renameat(tenants, name, tenants, gone))
		return -errno;
	vgpu_state_remove_tree(tenants, gone, 2);
	return 0;
}

int vgpu_state_read(int directory, const char *name, void *to, size_t size)
{
	/* Not blocking: under our lock, a pipe in its place would stop the whole node. */
	int fd = openat(directory, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	struct stat status;
	size_t done = 0;
	ssize_t got = 0;

	if (fd < 0)
		return -errno;
	if (!fstat(fd, &status) && S_ISREG(status.st_mode))
		while (done < size &&
		       (got = pread(fd, (char *)to + done, size - done, (off_t)done)) > 0)
			done += (size_t)got;
	close(fd);
	return got < 0 ? -EIO : done == size ? 0 : -ENODATA;
}

/* Written in full, never left sparse: a full disk is an error here, not a SIGBUS there. */
int vgpu_state_write(int directory, const char *name, const void *from, size_t size, mode_t mode)
{
	int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode), error = 0;
	size_t done = 0;

	if (fd < 0)
		return -errno;
	while (done < size && !error) {
		ssize_t put = write(fd, (const char *)from + done, size - done);

		if (put >= 0)
			done += (size_t)put;
		else if (errno != EINTR)
			error = -errno;
	}
	if (!error && fchmod(fd, mode)) /* whatever the umask is */
		error = -errno;
	close(fd);
	return error;
}
