// Float32 numbers in two pieces of float16, whose product is three products of matrix units (Ootomo and Yokota 2022):
//
//   scaled = x 2^-exponent,   piece 0 = f16(scaled),   piece 1 = f16(LIFT (scaled - piece 0))
//
// An array has one exponent, such that its largest magnitude becomes 2^14 or more and less than 2^15: sums of products
// of such numbers, and each of the pieces, are far from the ends of their range. LIFT keeps piece 1 as far from the
// small end as piece 0 is, so both together have 22 bits of what is 2^-28 of the largest or more, and 2^-50 of it of
// what is less.
const float LIFT = 2048.0;
const int LARGEST_EXPONENT = 14, LEAST_EXPONENT = -126;

// The exponent of an array whose largest finite magnitude has these bits; for zeros any will do.
int exponent_of(uint bits) { return max(int(bits >> 23) - 127 - LARGEST_EXPONENT, LEAST_EXPONENT); }
