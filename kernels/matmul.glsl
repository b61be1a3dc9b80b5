// What the kernels of matrix products share: tiles in an order that suits the cache, and the epilogue that turns a sum
// into results. Included after fresh.glsl and kernel.glsl, whose push constants it reads:
//   bias, residual, c, preactivation, factor, b_sums, columns, put_rows
// Variants define S_BITS (32 or 16: storage of the preactivation) and BFLOAT (1: 16-bit values are bfloat16). With C_HALF c is
// stored in 16 bits, too. C_VECTOR is how many neighbours are stored at a time: 8, 4, or 0 for one.

#include "halves.glsl"

#ifndef STORED  // what is stored of four results
#define STORED(values) values
#endif

// The place of the tile of C with this number. Bands of eight tile rows are walked column by column, so that workgroups
// that run at the same time read the same parts of A and B.
uvec2 tile_of(uint index, uint tile_rows, uint tile_columns) {
    const uint BAND = 8;
    uint band = index / (BAND * tile_columns), within = index % (BAND * tile_columns);
    uint height = min(BAND, tile_rows - band * BAND);
    return uvec2(within / height, band * BAND + within % height);
}

// --- activations: the numbers are those of alpha/activation.py plus one, 0 is none ---

#if S_BITS == 32
#include "accurate.glsl"
#else
#include "approximate.glsl"
#endif
#include "activation.glsl"

// --- epilogue: c = activation(scale sum + bias) + residual, preactivation = scale sum + bias ---
// With HAS_RESIDUAL = 2 the residual is DIAGONAL times the identity, of square results. With FACTOR c is multiplied by the
// derivative, at `factor`, of that number plus one, see activation.glsl.
// The last 2 PUTS columns are not for c: the first PUTS of them go to row put_slots[m] of put_keys, the next to that of
// put_values, both rows of PUTS numbers like those of c, put_rows of them. Such products have a
// C_VECTOR, and neither factor nor preactivation nor sums of columns, in whose fields these arrays are: the push constants
// have no room for more.
#define put_slots i32_buffer(uint64_t(factor))
#define put_keys uint64_t(preactivation)
#define put_values uint64_t(b_sums)

// One element, and four or eight neighbours, to place `index` of an array of float32 or, `half_`, of the variant's 16-bit
// type.
void put_one(uint64_t base, uint64_t index, float value, bool half_) {
#ifdef SIXTEEN_BITS
    if (half_) {
        bf16_buffer(base + 2 * index).at[0] = uint16_t(pack_halves(vec2(value, 0.0)));
        return;
    }
#endif
    f32_buffer(base + 4 * index).at[0] = value;
}

void put_four(uint64_t base, uint64_t index, vec4 value, bool half_) {
#ifdef SIXTEEN_BITS
    if (half_) {
        u32x2_buffer(base + 2 * index).at[0] = pack_halves4(value);
        return;
    }
#endif
    f32x4_buffer(base + 4 * index).at[0] = value;
}

void put_eight(uint64_t base, uint64_t index, vec4 first, vec4 second, bool half_) {
#ifdef SIXTEEN_BITS
    if (half_) {
        u32x4_buffer(base + 2 * index).at[0] = uvec4(pack_halves4(first), pack_halves4(second));
        return;
    }
#endif
    put_four(base, index, first, false);
    put_four(base, index + 4, second, false);
}

// The residual of HAS_RESIDUAL = 2 for four neighbours, the first at place `index` of the results and in this column. How
// far that is behind its column's element of the diagonal says whether one of the four is on it.
vec4 diagonal_of(uint64_t index, uint column) {
    uint behind = uint(index) % (columns * columns) - column * (columns + 1);
    return DIAGONAL * vec4(equal(uvec4(behind), columns * uvec4(0, 1, 2, 3)));
}

void store_one(uint64_t index, uint column, float value) {
    if (HAS_BIAS != 0) value += floats1(uint64_t(bias)).at[column];
    if (HAS_PREACTIVATION != 0) put_one(uint64_t(preactivation), index, value, S_BITS == 16);
    if (ACTIVATION != 0) value = activate(ACTIVATION - 1, value);
    if (HAS_RESIDUAL == 1) value += f32_buffer(uint64_t(residual) + 4 * index).at[0];
    if (HAS_RESIDUAL == 2) value += diagonal_of(index, column).x;
#ifdef SIXTEEN_BITS
    if (FACTOR != 0)
        value *= activation_slope(FACTOR - 1, unpack_halves(shorts1(uint64_t(factor) + 2 * index).at[0]).x);
#endif
    put_one(uint64_t(c), index, value, C_HALF != 0);
}

vec4 bias_of(uint column) { return floats4(uint64_t(bias)).at[column / 4]; }

vec4 residual_of(uint64_t index) { return fresh_f32x4(uint64_t(residual) + 4 * index, 0); }

// What four neighbours need of memory besides their sums; with PUTS, `slot` is the row that takes their key or value.
struct Beside {
    vec4 bias, residual;
    uvec2 factor;
    uint slot;
};
const Beside NOTHING = Beside(vec4(0.0), vec4(0.0), uvec2(0), 0);

uint slot_of(uint row, uint column) {
    return PUTS != 0 && column >= columns - 2 * PUTS ? uint(put_slots.at[row]) : 0;
}

Beside beside(uint64_t index, uint column) {
    Beside it = NOTHING;
    if (HAS_BIAS != 0) it.bias = bias_of(column);
    if (HAS_RESIDUAL == 1) it.residual = residual_of(index);
    if (HAS_RESIDUAL == 2) it.residual = diagonal_of(index, column);
    if (FACTOR != 0) it.factor = words2(uint64_t(factor) + 2 * index).at[0];
    it.slot = slot_of(uint(index) / columns, column);
    return it;
}

// Four neighbours of one row, finished.
vec4 finished(vec4 value, Beside it, out vec4 before) {
    if (HAS_BIAS != 0) value += it.bias;
    before = value;
    if (ACTIVATION != 0) value = activate(ACTIVATION - 1, value);
    if (HAS_RESIDUAL != 0) value += it.residual;
#ifdef SIXTEEN_BITS
    if (FACTOR != 0) value *= activation_slope(FACTOR - 1, unpack_halves4(it.factor));
#endif
    return value;
}

// Where results go: to c, or as keys and values to an array and a place in it that `to` and `index` become; whether they
// go anywhere.
bool is_placed(inout uint64_t to, inout uint64_t index, uint column, uint slot) {
    const uint put_begin = columns - 2 * PUTS;
    if (PUTS == 0 || column < put_begin) return true;
    const bool is_key = column < put_begin + PUTS;
    to = is_key ? put_keys : put_values;
    index = uint64_t(slot) * PUTS + (column - put_begin - (is_key ? 0 : PUTS));
    return slot < put_rows;
}

// `index` is the position of the first in c, residual, preactivation and factor.
void store_results(uint64_t index, uint column, vec4 value, Beside it) {
    if (C_VECTOR == 0) {
        for (uint i = 0; i < 4 && column + i < columns; i++) store_one(index + i, column + i, value[i]);
        return;
    }
    vec4 before;
    value = STORED(finished(value, it, before));
    uint64_t to = uint64_t(c), place = index;
    if (is_placed(to, place, column, it.slot)) put_four(to, place, value, C_HALF != 0);
    if (HAS_PREACTIVATION != 0) put_four(uint64_t(preactivation), index, before, S_BITS == 16);
}

void store_results(uint64_t index, uint column, vec4 value) {
    if (C_VECTOR == 0) store_results(index, column, value, NOTHING);
    else store_results(index, column, value, beside(index, column));
}

// Eight neighbours, with C_VECTOR = 8.
void store_results(uint64_t index, uint column, vec4 first, vec4 second, Beside of_first, Beside of_second) {
    vec4 before, other;
    first = finished(first, of_first, before);
    second = finished(second, of_second, other);
    uint64_t to = uint64_t(c), place = index;
    if (is_placed(to, place, column, of_first.slot)) put_eight(to, place, first, second, C_HALF != 0);
    if (HAS_PREACTIVATION != 0) put_eight(uint64_t(preactivation), index, before, other, S_BITS == 16);
}
