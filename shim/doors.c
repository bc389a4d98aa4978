/* SPDX-License-Identifier: Apache-2.0
 *
 * The first two of the three doors; routes.c is the third.  Linking needs no
 * code: our exports come first.  `dlsym` lets the driver answer first and
 * exchanges its function for ours; a name is never judged here, so what the
 * installed driver lacks stays absent.
 *
 * `dlsym` is written in assembly, because RTLD_NEXT means "after the caller",
 * and the caller is known by its return address: a call from C would put us in
 * its place, while a jump leaves it on top of the stack.  It runs at any time,
 * also in constructors, in replacements of malloc and before anything of ours
 * is set up: no allocation, no lock, no environment, and errno and dlerror()
 * are left as the plain call leaves them.  Until a name is known to be the
 * driver's not even the libc's string functions are called, nor is anything
 * instrumented: a sanitizer looks up its functions before it can check any.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "shim.h"
#include "symbols.h"

/* musl has no dlvsym. */
#pragma weak dlvsym

#define NOT_INSTRUMENTED __attribute__((no_sanitize("address", "thread", "undefined")))

typedef void *(*dlsym_function)(void *, const char *);

/* Read by the assembly. */
__attribute__((visibility("hidden"))) dlsym_function vgpu_dlsym_after_us;

/* How deep this thread is in lookups of our own. */
static __thread int own_lookups __attribute__((tls_model("initial-exec")));

void vgpu_lookups_begin(void)
{
	own_lookups++;
}

void vgpu_lookups_end(void)
{
	own_lookups--;
}

/* ---- the dlsym after ours ----------------------------------------------------------- */

#if defined(__x86_64__)
#define BASE_VERSION "GLIBC_2.2.5"
#elif defined(__aarch64__)
#define BASE_VERSION "GLIBC_2.17"
#endif

static void *nothing(void *handle, const char *name)
{
	return NULL;
}

NOT_INSTRUMENTED static dlsym_function find_dlsym(void)
{
	void *found = NULL, *next;

	if (dlvsym) {
		/* The base version is in every glibc, so that nothing fails here: a
		 * failure would allocate its message. */
		found = dlvsym(RTLD_NEXT, "dlsym", BASE_VERSION);
		if (!found)
			found = dlvsym(RTLD_NEXT, "dlsym", "GLIBC_2.34");
	}
	if (!found)
		found = vgpu_walk_to_dlsym();
	if (!found)
		found = (void *)nothing;
	/* Without a version: somebody else's, if it comes between us and the libc. */
	next = ((dlsym_function)found)(RTLD_NEXT, "dlsym");
	if (next)
		found = next;
	__atomic_store_n(&vgpu_dlsym_after_us, (dlsym_function)found, __ATOMIC_RELEASE);
	return (dlsym_function)found;
}

void *vgpu_next_dlsym(void *handle, const char *name)
{
	dlsym_function next = __atomic_load_n(&vgpu_dlsym_after_us, __ATOMIC_ACQUIRE);

	return (next ? next : find_dlsym())(handle, name);
}

/* ---- whose an address is --------------------------------------------------------------- */

NOT_INSTRUMENTED static int is_upper(char c)
{
	return c >= 'A' && c <= 'Z';
}

/* Library of the driver that a file is, or -1. */
static int library_of(const struct loaded_file *file)
{
	const char *name = strrchr(file->path, '/');

	name = name ? name + 1 : file->path;
	if (!strncmp(name, "libcuda.so", 10))
		return LIBRARY_CUDA;
	if (!strncmp(name, "libnvidia-ml.so", 15))
		return LIBRARY_NVML;
	return -1;
}

/* Names of the table, and what else the vendors call alike. */
NOT_INSTRUMENTED static int may_be_driver_name(const char *name)
{
	if (name[0] == 'c')
		return name[1] == 'u' && is_upper(name[2]);
	return name[0] == 'n' && name[1] == 'v' && name[2] == 'm' && name[3] == 'l' &&
	       is_upper(name[4]);
}

/* ---- dlsym -------------------------------------------------------------------------------- */

/* The arguments as the assembly passes them on to the next dlsym. */
struct lookup {
	void *handle;
	const char *name;
};

/* Our exports make lookups in the global scope succeed where no driver is.
 * Such a lookup is sent to a library that has no such name, for the loader's
 * own error. */
static void *fail(struct lookup *lookup)
{
	void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);

	if (libc)
		lookup->handle = libc;
	return NULL;
}

static void *answer(struct lookup *lookup, const struct intercept *intercept, const void *caller)
{
	enum library library = intercept->library;
	const struct driver *driver;
	struct loaded_file file;
	void *found = intercept->body;

	if (vgpu_file_at(caller, &file) && library_of(&file) >= 0) {
		/* The driver looks for itself, and in the global scope it would find us. */
		driver = vgpu_driver_loaded(library);
		return driver && (lookup->handle == RTLD_DEFAULT || lookup->handle == RTLD_NEXT)
			       ? vgpu_driver_has(driver, intercept)
			       : NULL;
	}
	/* After whom RTLD_NEXT searches only the loader knows; the driver's function
	 * must not come out, and ours calls it by address, so nothing can loop. */
	if (lookup->handle != RTLD_NEXT)
		found = vgpu_next_dlsym(lookup->handle, intercept->name);
	if (!found)
		return NULL;
	if (found == intercept->body) {
		driver = vgpu_driver_loaded(library);
		return driver && vgpu_is_exported(driver, intercept) ? found : fail(lookup);
	}
	if (!vgpu_file_at(found, &file))
		return vgpu_in_other_namespace(lookup->handle, intercept->name);
	if (library_of(&file) != (int)library)
		return NULL; /* of another interposer, or of a library that borrows the name */
	driver = vgpu_driver_adopt(library, lookup->handle, &file);
	return driver && vgpu_driver_has(driver, intercept) ? intercept->body : NULL;
}

/* What dlsym is to return, or NULL for "ask the next dlsym".  Called by the assembly. */
NOT_INSTRUMENTED __attribute__((used, visibility("hidden"))) void *
vgpu_lookup(struct lookup *lookup, const void *caller)
{
	const char *name = lookup->name;
	const struct intercept *intercept;
	void *found;
	int error;

	if (unlikely(!vgpu_dlsym_after_us))
		find_dlsym();
	if (!name || own_lookups || !may_be_driver_name(name))
		return NULL;
	intercept = vgpu_intercept_named(name);
	if (!intercept)
		return NULL;
	error = errno;
	vgpu_lookups_begin();
	found = answer(lookup, intercept, caller);
	vgpu_lookups_end();
	if (found)
		dlerror();
	errno = error;
	return found;
}

/* Under both versions that libcs have: who asks for one of them must not get past us. */
__asm__(".symver vgpu_dlsym, dlsym@@GLIBC_2.34, remove\n"
	".symver vgpu_dlsym_base, dlsym@" BASE_VERSION ", remove\n");

#if defined(__x86_64__)
__asm__(".pushsection .text\n"
	".globl vgpu_dlsym, vgpu_dlsym_base\n"
	".type vgpu_dlsym, @function\n"
	".type vgpu_dlsym_base, @function\n"
	".p2align 4\n"
	"vgpu_dlsym:\n"
	"vgpu_dlsym_base:\n"
	"	.cfi_startproc\n"
	"	endbr64\n"
	"	push %rsi\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	push %rdi\n"
	"	.cfi_adjust_cfa_offset 8\n"
	"	sub $8, %rsp\n" /* the callee wants it aligned to 16 */
	"	.cfi_adjust_cfa_offset 8\n"
	"	lea 8(%rsp), %rdi\n"  /* the arguments, which it may change */
	"	mov 24(%rsp), %rsi\n" /* the caller */
	"	call vgpu_lookup\n"
	"	add $8, %rsp\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	pop %rdi\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	pop %rsi\n"
	"	.cfi_adjust_cfa_offset -8\n"
	"	test %rax, %rax\n"
	"	jnz 1f\n"
	"	jmp *vgpu_dlsym_after_us(%rip)\n"
	"1:	ret\n"
	"	.cfi_endproc\n"
	".size vgpu_dlsym, . - vgpu_dlsym\n"
	".size vgpu_dlsym_base, . - vgpu_dlsym_base\n"
	".popsection\n");
#elif defined(__aarch64__)
__asm__(".pushsection .text\n"
	".globl vgpu_dlsym, vgpu_dlsym_base\n"
	".type vgpu_dlsym, %function\n"
	".type vgpu_dlsym_base, %function\n"
	".p2align 4\n"
	"vgpu_dlsym:\n"
	"vgpu_dlsym_base:\n"
	"	.cfi_startproc\n"
	"	hint #34\n" /* bti c */
	"	stp x29, x30, [sp, #-32]!\n"
	"	.cfi_adjust_cfa_offset 32\n"
	"	.cfi_rel_offset x29, 0\n"
	"	.cfi_rel_offset x30, 8\n"
	"	stp x0, x1, [sp, #16]\n"
	"	add x0, sp, #16\n" /* the arguments, which it may change */
	"	mov x1, x30\n"     /* the caller */
	"	bl vgpu_lookup\n"
	"	mov x9, x0\n"
	"	ldp x0, x1, [sp, #16]\n"
	"	ldp x29, x30, [sp], #32\n"
	"	.cfi_adjust_cfa_offset -32\n"
	"	.cfi_restore x29\n"
	"	.cfi_restore x30\n"
	"	cbnz x9, 1f\n"
	"	adrp x16, vgpu_dlsym_after_us\n"
	"	ldr x16, [x16, #:lo12:vgpu_dlsym_after_us]\n"
	"	br x16\n"
	"1:	mov x0, x9\n"
	"	ret\n"
	"	.cfi_endproc\n"
	".size vgpu_dlsym, . - vgpu_dlsym\n"
	".size vgpu_dlsym_base, . - vgpu_dlsym_base\n"
	".popsection\n");
#else
#error "dlsym has no entry for this machine"
#endif
