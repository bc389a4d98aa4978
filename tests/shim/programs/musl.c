/* SPDX-License-Identifier: Apache-2.0
 *
 * A program of another libc, without that libc's headers: prints what lookups
 * in the global scope find, and what its argument is as a number.
 */
extern int printf(const char *, ...), atoi(const char *);
extern void *dlsym(void *, const char *);
extern int __libc_start_main(int (*)(int, char **), int, char **);

static int program(int argc, char **argv)
{
	int (*convert)(const char *) = (int (*)(const char *))dlsym((void *)0, "atoi");

	printf("%d %d %d\n", convert == atoi, dlsym((void *)0, "cuMemAlloc_v2") != (void *)0,
	       convert ? convert(argc > 1 ? argv[1] : "0") : -1);
	return 0;
}

__attribute__((used)) static void begin(long *stack)
{
	__libc_start_main(program, (int)stack[0], (char **)(stack + 1));
}

#if defined(__x86_64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	xor %ebp, %ebp\n"
	"	mov %rsp, %rdi\n"
	"	and $-16, %rsp\n"
	"	call begin\n");
#elif defined(__aarch64__)
__asm__(".globl _start\n"
	"_start:\n"
	"	mov x29, #0\n"
	"	mov x0, sp\n"
	"	bl begin\n");
#endif
