/* avxloop: keeps known values in every vector register through a long loop that touches none of them, and checks
 * them afterwards. Nearly always it is interrupted inside the loop, where the values are nowhere else.
 *
 *     avxloop [ROUNDS [LOOPS]]      ROUNDS 0: for ever
 *
 * AVX-512: zmm0 to zmm31 and k0 to k7; AVX: ymm0 to ymm15; otherwise xmm0 to xmm15. With them the MXCSR and the x87
 * control word, and a value on the x87 stack. Standard error says which registers there are.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "prng.h"

/* The registers in memory: all vectors one after another, then k0 to k7. */
struct registers {
    unsigned char vectors[32 * 64];
    uint64_t masks[8];
} __attribute__((aligned(64)));

typedef void hold_function(const struct registers *in, struct registers *out, uint64_t loops);

#define WAIT "1: dec %[loops]; jnz 1b;"
#define LOW(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7) m(8) m(9) m(10) m(11) m(12) m(13) m(14) m(15)
#define HIGH(m) m(16) m(17) m(18) m(19) m(20) m(21) m(22) m(23) m(24) m(25) m(26) m(27) m(28) m(29) m(30) m(31)
#define MASKS(m) m(0) m(1) m(2) m(3) m(4) m(5) m(6) m(7)

#define XMM_IN(n) "movdqu " #n "*16(%[in]), %%xmm" #n ";"
#define XMM_OUT(n) "movdqu %%xmm" #n ", " #n "*16(%[out]);"
#define YMM_IN(n) "vmovdqu " #n "*32(%[in]), %%ymm" #n ";"
#define YMM_OUT(n) "vmovdqu %%ymm" #n ", " #n "*32(%[out]);"
#define ZMM_IN(n) "vmovdqu64 " #n "*64(%[in]), %%zmm" #n ";"
#define ZMM_OUT(n) "vmovdqu64 %%zmm" #n ", " #n "*64(%[out]);"
#define MASK_IN(n) "kmovq 2048+" #n "*8(%[in]), %%k" #n ";"
#define MASK_OUT(n) "kmovq %%k" #n ", 2048+" #n "*8(%[out]);"
#define XMM_NAMES                                                                                                      \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",         \
        "xmm13", "xmm14", "xmm15"
#define HIGH_NAMES                                                                                                     \
    "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27",        \
        "xmm28", "xmm29", "xmm30", "xmm31"

static void hold_xmm(const struct registers *in, struct registers *out, uint64_t loops)
{
    __asm__ volatile(LOW(XMM_IN) WAIT LOW(XMM_OUT)
                     : [loops] "+r"(loops)
                     : [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", XMM_NAMES);
}

__attribute__((target("avx"))) static void hold_ymm(const struct registers *in, struct registers *out, uint64_t loops)
{
    __asm__ volatile(LOW(YMM_IN) WAIT LOW(YMM_OUT) "vzeroupper;"
                     : [loops] "+r"(loops)
                     : [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", XMM_NAMES);
}

__attribute__((target("avx512f,avx512bw"))) static void hold_zmm(const struct registers *in, struct registers *out,
                                                                 uint64_t loops)
{
    __asm__ volatile(LOW(ZMM_IN) HIGH(ZMM_IN) MASKS(MASK_IN) WAIT LOW(ZMM_OUT) HIGH(ZMM_OUT) MASKS(MASK_OUT)
                     "vzeroupper;"
                     : [loops] "+r"(loops)
                     : [in] "r"(in), [out] "r"(out)
                     : "memory", "cc", XMM_NAMES, HIGH_NAMES, "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

static const struct kind {
    const char *name;
    hold_function *hold;
    size_t vector_bytes, mask_bytes;
} xmm = {"xmm0 to xmm15", hold_xmm, 16 * 16, 0}, ymm = {"ymm0 to ymm15", hold_ymm, 16 * 32, 0},
  zmm = {"zmm0 to zmm31 and k0 to k7", hold_zmm, 32 * 64, sizeof((struct registers *)0)->masks};

/* Rounding and precision that no compiled code sets: MXCSR rounds up and flushes to zero, the x87 unit rounds to
 * single precision and down, and holds pi. True if all of that is as it was after the loop. */
static bool hold(const struct kind *kind, const struct registers *in, struct registers *out, uint64_t loops)
{
    const uint32_t mxcsr = 0xdf80, usual_mxcsr = 0x1f80;
    const uint16_t control = 0x047f, usual_control = 0x037f;
    uint32_t mxcsr_after;
    uint16_t control_after;
    long double pi_after;
    static const long double pi = 3.14159265358979323851L;
    __asm__ volatile("ldmxcsr %0; fldcw %1; fldpi" : : "m"(mxcsr), "m"(usual_control) : "memory");
    __asm__ volatile("fldcw %0" : : "m"(control) : "memory");
    kind->hold(in, out, loops);
    __asm__ volatile("stmxcsr %0; fnstcw %1; fldcw %4; fstpt %2; ldmxcsr %3"
                     : "=m"(mxcsr_after), "=m"(control_after), "=m"(pi_after)
                     : "m"(usual_mxcsr), "m"(usual_control)
                     : "memory");
    return mxcsr_after == mxcsr && control_after == control && memcmp(&pi_after, &pi, 10) == 0;
}

int main(int argc, char **argv)
{
    long rounds = number_argument(argc, argv, 1, 0, 0, 1000000000);
    long loops = number_argument(argc, argv, 2, 50000000, 1, 1000000000000);
    const struct kind *kind = &xmm;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw"))
        kind = &zmm;
    else if (__builtin_cpu_supports("avx"))
        kind = &ymm;
    fprintf(stderr, "avxloop: %s\n", kind->name);
    setvbuf(stdout, NULL, _IOLBF, 0);
    static struct registers in, out;
    uint64_t state = 1;
    for (long round = 1; rounds == 0 || round <= rounds; round++) {
        for (size_t i = 0; i < sizeof in.vectors; i++)
            in.vectors[i] = (unsigned char)next_random(&state);
        for (int i = 0; i < 8; i++)
            in.masks[i] = next_random(&state);
        memset(&out, 0, sizeof out);
        bool controls_right = hold(kind, &in, &out, (uint64_t)loops);
        if (memcmp(in.vectors, out.vectors, kind->vector_bytes) != 0 ||
            memcmp(in.masks, out.masks, kind->mask_bytes) != 0 || !controls_right) {
            printf("round %ld: a register has changed\n", round);
            return 1;
        }
        printf("round %ld right\n", round);
    }
    return 0;
}
