/* SPDX-License-Identifier: Apache-2.0
 *
 * Finding `dlsym` where nobody can be asked for it: on a libc without dlvsym
 * (musl) every other way leads back to our own export.  The symbol tables of
 * the loaded files are read directly, ours excepted; nothing is allocated.
 */
#define _GNU_SOURCE
#include <link.h>
#include <stdint.h>
#include <string.h>

#include "symbols.h"

struct symbols {
	const ElfW(Sym) * table;
	const char *names;
	const uint32_t *gnu_hash;
	const ElfW(Word) * hash;
};

/* glibc has relocated the addresses in a dynamic section, musl has not. */
static const void *at(ElfW(Addr) base, ElfW(Addr) address)
{
	return (const void *)(address < base ? base + address : address);
}

static int read_dynamic(const struct dl_phdr_info *info, struct symbols *symbols)
{
	const ElfW(Dyn) *dynamic = NULL;

	memset(symbols, 0, sizeof(*symbols));
	for (int i = 0; i < info->dlpi_phnum; i++)
		if (info->dlpi_phdr[i].p_type == PT_DYNAMIC)
			dynamic = at(info->dlpi_addr, info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
	for (; dynamic && dynamic->d_tag != DT_NULL; dynamic++) {
		const void *value = at(info->dlpi_addr, dynamic->d_un.d_ptr);

		switch (dynamic->d_tag) {
		case DT_SYMTAB:
			symbols->table = value;
			break;
		case DT_STRTAB:
			symbols->names = value;
			break;
		case DT_GNU_HASH:
			symbols->gnu_hash = value;
			break;
		case DT_HASH:
			symbols->hash = value;
			break;
		}
	}
	return symbols->table && symbols->names && (symbols->gnu_hash || symbols->hash);
}

static int is_wanted(const struct symbols *symbols, uint32_t index, const char *name)
{
	const ElfW(Sym) *symbol = &symbols->table[index];

	return symbol->st_shndx != SHN_UNDEF && !strcmp(symbols->names + symbol->st_name, name);
}

static uint32_t search_hash(const struct symbols *symbols, const char *name)
{
	for (uint32_t i = 1; i < symbols->hash[1]; i++)
		if (is_wanted(symbols, i, name))
			return i;
	return 0;
}

/* Each bucket names its first symbol; the last of a chain has the low bit set. */
static uint32_t search_gnu_hash(const struct symbols *symbols, const char *name)
{
	uint32_t buckets = symbols->gnu_hash[0], offset = symbols->gnu_hash[1];
	uint32_t words = symbols->gnu_hash[2] * (sizeof(ElfW(Addr)) / sizeof(uint32_t));
	const uint32_t *bucket = symbols->gnu_hash + 4 + words, *chain = bucket + buckets;
	uint32_t hash = 5381;

	for (const char *c = name; *c; c++)
		hash = hash * 33 + (uint8_t)*c;
	for (uint32_t i = bucket[hash % buckets]; i >= offset; i++) {
		if (is_wanted(symbols, i, name))
			return i;
		if (chain[i - offset] & 1)
			break;
	}
	return 0;
}

static int search(struct dl_phdr_info *info, size_t size, void *found)
{
	extern const ElfW(Ehdr) __ehdr_start __attribute__((visibility("hidden")));
	struct symbols symbols;
	uint32_t index;

	if (info->dlpi_addr == (ElfW(Addr)) & __ehdr_start || !read_dynamic(info, &symbols))
		return 0;
	index = symbols.gnu_hash ? search_gnu_hash(&symbols, "dlsym")
				 : search_hash(&symbols, "dlsym");
	if (!index)
		return 0;
	*(void **)found = (void *)(info->dlpi_addr + symbols.table[index].st_value);
	return 1;
}

void *vgpu_walk_to_dlsym(void)
{
	void *found = NULL;

	dl_iterate_phdr(search, &found);
	return found;
}

/* ---- whose an address is ------------------------------------------------------------------- */

struct wanted {
	uintptr_t address;
	struct loaded_file *file;
};

static int spans(struct dl_phdr_info *info, size_t size, void *argument)
{
	struct wanted *wanted = argument;
	uintptr_t start = UINTPTR_MAX, end = 0;

	for (int i = 0; i < info->dlpi_phnum; i++) {
		const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
		uintptr_t from = info->dlpi_addr + segment->p_vaddr;

		if (segment->p_type != PT_LOAD)
			continue;
		start = from < start ? from : start;
		end = from + segment->p_memsz > end ? from + segment->p_memsz : end;
	}
	if (wanted->address < start || wanted->address >= end)
		return 0;
	*wanted->file = (struct loaded_file){info->dlpi_name, start, end};
	return 1;
}

int vgpu_file_at(const void *address, struct loaded_file *file)
{
	struct wanted wanted = {(uintptr_t)address, file};

	return dl_iterate_phdr(spans, &wanted);
}
