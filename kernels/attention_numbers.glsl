// What all attention kernels on matrix units share: 16-bit numbers, and rows of heads in octets of them.
//
// Include after attention.glsl. Expects the specialization constant SUBGROUP_SIZE, and BFLOAT (1: numbers are bfloat16,
// 0: float16).

#if BFLOAT
#define NUMBER bfloat16_t
#else
#define NUMBER float16_t
#endif
#define ROW_MAJOR gl_CooperativeMatrixLayoutRowMajor
#define COLUMN_MAJOR gl_CooperativeMatrixLayoutColumnMajor

const uint SUBGROUPS = THREADS / SUBGROUP_SIZE;
const uint PADDED = (WIDTH + 15) / 16 * 16;
const uint OCTETS = PADDED / 8;
const uint PITCH = OCTETS + 1;  // of rows in shared memory, odd, so that eight of them begin in different banks

uint pack_pair(vec2 numbers) {
#if BFLOAT
    return bfloat16_bits(numbers.x) | (bfloat16_bits(numbers.y) << 16);
#else
    return packFloat2x16(f16vec2(numbers));
#endif
}
