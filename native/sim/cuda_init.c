/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The beginning and the end of the driver in a process.
 *
 * Nothing happens when the library is loaded; cuInit() attaches to the machine.
 * A child of fork() has no driver: every call says so, and the child leaves the
 * parent's slot alone.  After our exit handler calls say that the driver has
 * ended: destructors of clients run later than it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cuda_driver.h"

struct driver driver = {.lock = PTHREAD_MUTEX_INITIALIZER, .slot = -1};

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;

CUresult driver_not_ready(void)
{
	return driver.state == DRIVER_ENDED ? CUDA_ERROR_DEINITIALIZED : CUDA_ERROR_NOT_INITIALIZED;
}

static void at_exit(void)
{
	if (driver.state != DRIVER_READY)
		return; /* a forked child inherits this handler too */
	__atomic_store_n(&driver.state, DRIVER_ENDED, __ATOMIC_RELEASE);
	sim_leave(driver.slot);
}

static void in_child(void)
{
	if (driver.state == DRIVER_NEW)
		return;
	__atomic_store_n(&driver.state, DRIVER_FORKED, __ATOMIC_RELEASE);
	sim_forget();
}

static void format_uuid(const uint8_t *uuid, char *text)
{
	text += sprintf(text, "GPU-");
	for (int i = 0; i < 16; i++)
		text += sprintf(text, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
				uuid[i]);
}

/* One entry of CUDA_VISIBLE_DEVICES: the device it names, or -1. */
static int named_device(const char *entry, size_t length)
{
	char text[64], *end;
	int found = -1;
	if (length >= sizeof(text))
		return -1;
	memcpy(text, entry, length);
	text[length] = 0;
	if (strncasecmp(text, "GPU-", 4)) {
		long index = strtol(text, &end, 10);
		bool number = end != text && !*end;
		return number && index >= 0 && index < (long)driver.machine->device_count
			       ? (int)index
			       : -1;
	}
	for (uint32_t i = 0; i < driver.machine->device_count; i++) {
		char uuid[64];
		format_uuid(driver.machine->devices[i].identity.uuid, uuid);
		if (strncasecmp(uuid, text, length))
			continue;
		if (found >= 0)
			return -1; /* a prefix of two devices names neither */
		found = (int)i;
	}
	return found;
}

static bool is_listed(uint32_t number)
{
	for (int i = 0; i < driver.device_count; i++)
		if (driver.devices[i].number == number)
			return true;
	return false;
}

static void add_device(uint32_t number)
{
	struct device *device = &driver.devices[driver.device_count];
	*device = (struct device){
		.number = number,
		.ordinal = driver.device_count++,
		.identity = &driver.machine->devices[number].identity,
	};
}

/* All devices, or those listed, up to the first entry that names none.  A
 * device listed twice makes the whole list void. */
static void choose_devices(void)
{
	const char *list = getenv("CUDA_VISIBLE_DEVICES");
	driver.device_count = 0;
	if (!list) {
		for (uint32_t i = 0; i < driver.machine->device_count; i++)
			add_device(i);
		return;
	}
	while (*list) {
		list += strspn(list, " ");
		size_t length = strcspn(list, ",");
		size_t trimmed = length;
		while (trimmed && list[trimmed - 1] == ' ')
			trimmed--;
		int number = trimmed ? named_device(list, trimmed) : -1;
		if (number < 0)
			return;
		if (is_listed((uint32_t)number)) {
			driver.device_count = 0;
			return;
		}
		add_device((uint32_t)number);
		list += length;
		list += *list == ',';
	}
}

/* Unloading us would leave exit handlers and a thread without their code. */
static void stay_loaded(void)
{
	Dl_info self;
	if (dladdr((void *)stay_loaded, &self) && self.dli_fname)
		dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD | RTLD_NODELETE);
}

static CUresult start(void)
{
	static bool registered;
	driver.machine = sim_attach();
	if (!driver.machine)
		return CUDA_ERROR_NO_DEVICE;
	choose_devices();
	if (!driver.device_count)
		return CUDA_ERROR_NO_DEVICE;
	driver.slot = sim_join();
	if (driver.slot < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	if (!registered) {
		stay_loaded();
		pthread_atfork(NULL, NULL, in_child);
		atexit(at_exit);
		registered = true;
	}
	__atomic_store_n(&driver.state, DRIVER_READY, __ATOMIC_RELEASE);
	return CUDA_SUCCESS;
}

API cuInit(unsigned int flags)
{
	if (flags)
		return CUDA_ERROR_INVALID_VALUE;
	if (driver.state == DRIVER_FORKED || driver.state == DRIVER_ENDED)
		return driver_not_ready();
	pthread_mutex_lock(&starting);
	CUresult result = driver.state == DRIVER_READY ? CUDA_SUCCESS : start();
	pthread_mutex_unlock(&starting);
	return result;
}
