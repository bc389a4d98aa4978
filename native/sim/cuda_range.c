/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which addresses mean what: a treap of disjoint ranges, ordered by base.
 *
 * Every pointer that a client passes is looked up here first, so a pointer that
 * is not ours is an error code and never a fault.
 */
#include <stdlib.h>

#include "cuda_driver.h"

static struct range *root;

static uint32_t next_priority(void)
{
	static uint32_t state = 2463534242u;
	state ^= state << 13;
	state ^= state >> 17;
	state ^= state << 5;
	return state;
}

/* Ranges below `key` to *low, the others to *high. */
static void split(struct range *tree, uintptr_t key, struct range **low, struct range **high)
{
	while (tree) {
		if (tree->base < key) {
			*low = tree;
			low = &tree->right;
			tree = tree->right;
		} else {
			*high = tree;
			high = &tree->left;
			tree = tree->left;
		}
	}
	*low = NULL;
	*high = NULL;
}

static struct range *join(struct range *low, struct range *high)
{
	struct range *result, **place = &result;
	while (low && high) {
		if (low->priority > high->priority) {
			*place = low;
			place = &low->right;
			low = low->right;
		} else {
			*place = high;
			place = &high->left;
			high = high->left;
		}
	}
	*place = low ? low : high;
	return result;
}

struct range *range_add(enum range_kind kind, uintptr_t base, size_t size)
{
	struct range *low, *high, *range = calloc(1, sizeof(*range));
	if (!range)
		return NULL;
	range->priority = next_priority();
	range->kind = (uint32_t)kind;
	range->base = base;
	range->size = size;
	range->wanted = size;
	split(root, base, &low, &high);
	root = join(join(low, range), high);
	return range;
}

void range_remove(struct range *range)
{
	struct range **place = &root;
	while (*place && *place != range)
		place = range->base < (*place)->base ? &(*place)->left : &(*place)->right;
	if (*place)
		*place = join(range->left, range->right);
	free(range);
}

/* The last range that begins at or below an address. */
static struct range *range_below(uintptr_t address)
{
	struct range *best = NULL;
	for (struct range *tree = root; tree;) {
		if (tree->base <= address) {
			best = tree;
			tree = tree->right;
		} else {
			tree = tree->left;
		}
	}
	return best;
}

struct range *range_at(uintptr_t address)
{
	struct range *range = range_below(address);
	return range && address - range->base < range->size ? range : NULL;
}

struct range *range_next(uintptr_t address)
{
	struct range *best = NULL;
	for (struct range *tree = root; tree;) {
		if (tree->base >= address) {
			best = tree;
			tree = tree->left;
		} else {
			tree = tree->right;
		}
	}
	return best;
}

bool range_free_between(uintptr_t base, size_t size)
{
	struct range *next = range_next(base);
	return !range_at(base) && (!next || next->base - base >= size);
}
