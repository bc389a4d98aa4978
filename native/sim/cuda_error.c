/* SPDX-License-Identifier: Apache-2.0 */
/* Names and texts of the driver's result codes.  Work before cuInit(). */
#include "cuda_driver.h"

/* "CUDA_ERROR_OUT_OF_MEMORY" says "out of memory": the text is the name in
 * lower case, made once, when first asked for. */
#define TEXT_SIZE 64

static const struct {
	const char *name;
	int number;
} errors[] = {
#define ERROR(name, number) {#name, number},
#include "cuda_errors.def"
};

#define ERRORS (sizeof(errors) / sizeof(errors[0]))

static int find(CUresult error)
{
	for (size_t i = 0; i < ERRORS; i++)
		if (errors[i].number == (int)error)
			return (int)i;
	return -1;
}

API cuGetErrorName(CUresult error, const char **name)
{
	if (!name)
		return CUDA_ERROR_INVALID_VALUE;
	int found = find(error);
	*name = found < 0 ? NULL : errors[found].name;
	return found < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

static const char *make_text(char *text, const char *name)
{
	size_t skip = __builtin_strncmp(name, "CUDA_ERROR_", 11) ? 5 : 11;
	size_t length = 0;
	for (const char *c = name + skip; *c && length < TEXT_SIZE - 1; c++)
		text[length++] = *c == '_' ? ' ' : *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c;
	return text;
}

/* Two threads may both make the same text: the bytes are the same. */
API cuGetErrorString(CUresult error, const char **text)
{
	static char texts[ERRORS][TEXT_SIZE];
	if (!text)
		return CUDA_ERROR_INVALID_VALUE;
	int found = find(error);
	*text = found < 0 ? NULL : make_text(texts[found], errors[found].name);
	return found < 0 ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}
