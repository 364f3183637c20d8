/* matrix: matrix products with AVX2 and FMA, checked bit by bit; a checksum a round shows an interruption in the
 * middle that lost or changed a vector register.
 *
 *     matrix [SIZE [ROUNDS [plain]]]      ROUNDS 0: for ever; SIZE a multiple of 16
 *
 * The elements are small integers, so every sum is exact in a double, in whatever order it is added up, and the
 * checksums are the same with AVX and without ("plain", and what a processor without AVX2 does).
 */
#include <immintrin.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "args.h"
#include "prng.h"

typedef void product_function(const double *a, const double *b, double *c, long n);

static void product_plain(const double *a, const double *b, double *c, long n)
{
    memset(c, 0, (size_t)(n * n) * sizeof *c);
    for (long i = 0; i < n; i++)
        for (long k = 0; k < n; k++)
            for (long j = 0; j < n; j++)
                c[i * n + j] += a[i * n + k] * b[k * n + j];
}

/* Two rows of c by 16 columns at a time: eight sums stay in ymm registers through the whole inner loop. */
__attribute__((target("avx2,fma"))) static void product_avx(const double *a, const double *b, double *c, long n)
{
    for (long i = 0; i < n; i += 2) {
        for (long j = 0; j < n; j += 16) {
            __m256d sums[2][4];
            for (int v = 0; v < 4; v++)
                sums[0][v] = sums[1][v] = _mm256_setzero_pd();
            for (long k = 0; k < n; k++) {
                __m256d above = _mm256_broadcast_sd(&a[i * n + k]);
                __m256d below = _mm256_broadcast_sd(&a[(i + 1) * n + k]);
                for (int v = 0; v < 4; v++) {
                    __m256d right = _mm256_loadu_pd(&b[k * n + j + 4 * v]);
                    sums[0][v] = _mm256_fmadd_pd(above, right, sums[0][v]);
                    sums[1][v] = _mm256_fmadd_pd(below, right, sums[1][v]);
                }
            }
            for (int v = 0; v < 4; v++) {
                _mm256_storeu_pd(&c[i * n + j + 4 * v], sums[0][v]);
                _mm256_storeu_pd(&c[(i + 1) * n + j + 4 * v], sums[1][v]);
            }
        }
    }
}

static void fill(double *matrix, long n, uint64_t seed)
{
    for (long i = 0; i < n * n; i++)
        matrix[i] = (double)random_below(&seed, 2001) - 1000;
}

/* c x = a (b x) for a random vector x, in integers: a wrong element of c passes with a chance of 1 in 2,001. */
static bool is_product(const double *a, const double *b, const double *c, long n, uint64_t seed)
{
    int64_t *x = malloc(2 * (size_t)n * sizeof *x), *bx = x + n;
    if (x == NULL)
        abort();
    for (long i = 0; i < n; i++)
        x[i] = (int64_t)random_below(&seed, 2001) - 1000;
    for (long i = 0; i < n; i++) {
        bx[i] = 0;
        for (long j = 0; j < n; j++)
            bx[i] += (int64_t)b[i * n + j] * x[j];
    }
    bool equal = true;
    for (long i = 0; i < n; i++) {
        int64_t difference = 0;
        for (long j = 0; j < n; j++)
            difference += (int64_t)c[i * n + j] * x[j] - (int64_t)a[i * n + j] * bx[j];
        equal &= difference == 0;
    }
    free(x);
    return equal;
}

static uint64_t checksum(const double *matrix, long n)
{
    uint64_t sum = 0;
    for (long i = 0; i < n * n; i++) {
        uint64_t bits;
        memcpy(&bits, &matrix[i], sizeof bits);
        sum = mix64(sum + bits);
    }
    return sum;
}

int main(int argc, char **argv)
{
    long n = number_argument(argc, argv, 1, 256, 16, 4096) / 16 * 16;
    long rounds = number_argument(argc, argv, 2, 10, 0, 1000000000);
    bool plain = argc > 3 && strcmp(argv[3], "plain") == 0;
    bool avx = !plain && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    product_function *product = avx ? product_avx : product_plain;
    fprintf(stderr, "matrix: %s\n", avx ? "AVX2 and FMA" : "plain C");
    setvbuf(stdout, NULL, _IOLBF, 0);
    size_t elements = (size_t)(n * n);
    double *a = malloc(3 * elements * sizeof *a), *b = a + elements, *c = b + elements;
    if (a == NULL) {
        perror("malloc");
        return 1;
    }
    for (long round = 1; rounds == 0 || round <= rounds; round++) {
        fill(a, n, 2 * (uint64_t)round);
        fill(b, n, 2 * (uint64_t)round + 1);
        product(a, b, c, n);
        if (!is_product(a, b, c, n, (uint64_t)round)) {
            printf("round %ld: the product is wrong\n", round);
            return 1;
        }
        printf("round %ld checksum %016llx\n", round, (unsigned long long)checksum(c, n));
    }
    return 0;
}
