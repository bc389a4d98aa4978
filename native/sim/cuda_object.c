/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Handles: what a client holds in its hands.
 *
 * All objects live in cells of one size in one reserved stretch of addresses.
 * So any value at all can be asked whether it is a handle, and of what, without
 * reading memory that may not be there: a client's mistake becomes the driver's
 * error code, not a crash.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "cuda_work.h"

#define CELL 256
#define CELLS (1UL << 20)

_Static_assert(sizeof(struct context) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct stream) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct function) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct event) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct module) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct node) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct graph) <= CELL, "an object fits a cell");
_Static_assert(sizeof(struct exec) <= CELL, "an object fits a cell");

static char *cells;
static size_t used;           /* cells ever taken */
static struct object *unused; /* cells given back, by `next` */

static struct object *take_cell(void)
{
	struct object *cell = unused;
	if (cell) {
		unused = cell->next;
		return cell;
	}
	if (!cells) {
		void *memory = mmap(NULL, CELL * CELLS, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (memory == MAP_FAILED)
			return NULL;
		cells = memory;
	}
	return used < CELLS ? (struct object *)(cells + CELL * used++) : NULL;
}

void *object_new(enum object_kind kind, struct context *owner)
{
	struct object *object = take_cell();
	if (!object)
		return NULL;
	uint32_t generation = object->generation + 1;
	memset(object, 0, CELL);
	object->generation = generation;
	object->kind = kind;
	object->context = owner;
	if (owner) {
		object->next = owner->objects;
		if (owner->objects)
			owner->objects->before = object;
		owner->objects = object;
	}
	return object;
}

void object_free(void *freed)
{
	struct object *object = freed;
	if (object->context) {
		if (object->before)
			object->before->next = object->next;
		else
			object->context->objects = object->next;
		if (object->next)
			object->next->before = object->before;
	}
	object->kind = OBJECT_FREE;
	object->next = unused;
	unused = object;
}

void *object_of(const void *handle, enum object_kind kind)
{
	size_t offset = (size_t)((uintptr_t)handle - (uintptr_t)cells);
	if (!cells || offset >= CELL * used || offset % CELL)
		return NULL;
	struct object *object = (struct object *)(cells + offset);
	return object->kind == (uint32_t)kind ? object : NULL;
}
