// Operations on rows, one after the other, where each needs of the ones before nothing but the rows that it makes: matrix
// products with what rides along in them (matmul_matrix.comp), norms (norm.comp) and their gradients (norm_backward.comp),
// losses (cross_entropy.comp).
//
// A workgroup takes TILE_M rows through all of them, so that no other has to wait, and stores every result as the kernels
// of their own do. `table` has 32 words for each of `stages`: 12 addresses, and 8 numbers of which the first is its kind
// and flags; see alpha/backend_helios_stages.py. Products have 16-bit operands and rows of a multiple of eight numbers;
// norms are of WIDTH float32 numbers, and their results have 16 bits.
//
// A product is divided into slices of TILE_K x TILE_N of the right operand, which is on its way one slice ahead, over the
// end of a product as well. The left one stays in shared memory where a slice has all of it, and never leaves it where the
// norm before has made it (KEPT); and a norm finds the product before it there. Nothing is read conditionally, since then
// compilers wait for it at once: where there is nothing to read there are zeros to be read, behind the table.
// numpy: the operations one after the other
#version 460
#include "common.glsl"
#include "kernel.glsl"

layout(local_size_x_id = 0) in;

#if BFLOAT
#define HALF bfloat16_t
#else
#define HALF float16_t
#endif
#define A_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_K, gl_MatrixUseA>
#define B_MATRIX coopmat<HALF, gl_ScopeSubgroup, FRAGMENT_K, FRAGMENT_N, gl_MatrixUseB>
#define C_MATRIX coopmat<float, gl_ScopeSubgroup, FRAGMENT_M, FRAGMENT_N, gl_MatrixUseAccumulator>

#define PRODUCT 0u
#define NORM 1u
#define NORM_GRADIENT 2u
#define EARLY 256u      // the left operand was there before the first stage
#define KEPT 512u       // it is in shared memory already
#define KEEPS 1024u     // the result is to stay there, that of a product in b_shared
#define ALONG_K 2048u   // neighbours of the right operand lie along the sum
#define LEFT 4096u      // a norm's operand is what the product before has left in b_shared
#define ACTIVATES 8192u // the epilogue's parts
#define MULTIPLIES 16384u
#define HALVES 32768u

const uint WORDS = 32, NUMBERS = 24;  // of a stage, and the first of them that is no address
const uint VECTOR = 4;

#include "halves.glsl"
#include "approximate.glsl"
#include "activation.glsl"
#include "vectors.glsl"
#define WITHIN_SUBGROUP
#include "lanes.glsl"
#include "norm_row.glsl"
#include "norm_gradient.glsl"

const uint ROWS = TILE_M / (SUBGROUPS_M * FRAGMENT_M), COLUMNS = TILE_N / (SUBGROUPS_N * FRAGMENT_N);
const uint A_LINE = TILE_K / 8, A_UNITS = (TILE_M * A_LINE + THREADS - 1) / THREADS, A_STRIDE = A_LINE + 1;
const uint B_ALL = TILE_K * TILE_N / 8, B_UNITS = (B_ALL + THREADS - 1) / THREADS;
const uint B_SIZE = TILE_K * (TILE_N / 8 + 1) > TILE_N * (TILE_K / 8 + 1) ? TILE_K * (TILE_N / 8 + 1) : TILE_N * (TILE_K / 8 + 1);
// Results pass through the shared memory of B, so that a thread has eight neighbours.
const uint C_LINE = TILE_N / 8, C_STRIDE = TILE_N / 4 + 1, C_UNITS = (TILE_M * C_LINE + THREADS - 1) / THREADS;
const uint C_SIZE = TILE_M * C_STRIDE > 2 * THREADS ? TILE_M * C_STRIDE : 2 * THREADS;
const uint SLOTS = THREADS / LANES, EACH = (TILE_M + SLOTS - 1) / SLOTS;  // rows of a norm at a time, and of a thread

shared uint words[STAGES * WORDS];
shared uvec4 a_shared[TILE_M * A_STRIDE];
shared uvec4 b_shared[B_SIZE > C_SIZE ? B_SIZE : C_SIZE];

uvec4 a_next[A_UNITS], b_next[B_UNITS];
// The slice that is fetched next: of which stage, its place there, and where this thread's first unit of it lies, as of
// the first slice of these columns; in bytes from unit to unit, from slice to slice, and to the next columns.
uint next_stage, next_k, next_column, next_pass, next_step, next_columns;
uint64_t next_at, next_begin;

uint number_of(uint stage, uint index) { return words[stage * WORDS + NUMBERS + index]; }

uint64_t address_of(uint stage, uint index) {
    return packUint2x32(uvec2(words[stage * WORDS + 2 * index], words[stage * WORDS + 2 * index + 1]));
}

uvec4 words_at(uint64_t address) { return u32x4_buffer(address).at[0]; }

vec4 floats_at(uint64_t address) { return f32x4_buffer(address).at[0]; }

uint64_t zeros() { return uint64_t(table) + 4 * WORDS * stages; }

uint first_row() { return gl_WorkGroupID.x * TILE_M; }

// How the right operands of a kernel's products lie: 1 along the columns, 2 along the sum, 3 as their flags say.
bool along_k(uint flags) { return B_FORMS == 3 ? (flags & ALONG_K) != 0 : B_FORMS == 2; }

// --- products ---

void fetch_a(uint stage, uint k0) {
    uint64_t from = address_of(stage, 0);
    uint depth = number_of(stage, 1), stride = number_of(stage, 3);
    [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
        uint unit = i * THREADS + gl_LocalInvocationID.x;
        uint row = first_row() + unit / A_LINE, k = k0 + unit % A_LINE * 8;
        bool there = unit < TILE_M * A_LINE && row < rows && k < depth;
        a_next[i] = words_at(there ? from + 2 * (row * stride + k) : zeros());
    }
}

void put_a() {
    [[unroll]] for (uint i = 0; i < A_UNITS; i++) {
        uint unit = i * THREADS + gl_LocalInvocationID.x;
        if (TILE_M * A_LINE % THREADS == 0 || unit < TILE_M * A_LINE)
            a_shared[unit / A_LINE * A_STRIDE + unit % A_LINE] = a_next[i];
    }
}

void begin_product(uint stage) {
    next_stage = stage;
    next_k = next_column = 0;
    if (stage == stages) return;
    uint stride = 2 * number_of(stage, 4);
    bool along = along_k(number_of(stage, 0));
    uint units = (along ? TILE_K : TILE_N) / 8;
    next_begin = next_at = address_of(stage, 1) + (gl_LocalInvocationID.x / units * stride + gl_LocalInvocationID.x % units * 16);
    next_pass = THREADS / units * stride;
    next_step = TILE_K * (along ? 2 : stride);
    next_columns = TILE_N * (along ? stride : 2);
}

// The next slice of a right operand, or zeros where there is none.
void fetch_b() {
    uint stage = min(next_stage, stages - 1), flags = number_of(stage, 0);
    uint depth = next_stage < stages ? number_of(stage, 1) : 0, width = number_of(stage, 2);
    bool along = along_k(flags);
    uint units = (along ? TILE_K : TILE_N) / 8, line = gl_LocalInvocationID.x / units;
    uint start = gl_LocalInvocationID.x % units * 8;
    // What is left of the lines, and whether there is something of them where this thread reads.
    uint left = along ? width - next_column : depth - next_k;
    if (along ? next_k + start >= depth : next_column + start >= width || next_k >= depth) left = 0;
    [[unroll]] for (uint i = 0; i < B_UNITS; i++)
        b_next[i] = words4(line + i * (THREADS / units) < left ? next_at + i * next_pass : zeros()).at[0];
}

// To the slice after the one that was fetched.
void go_on() {
    uint depth = number_of(next_stage, 1), width = number_of(next_stage, 2);
    next_k += TILE_K;
    next_at += next_step;
    if (next_k < depth) return;
    next_k = 0;
    next_column += TILE_N;
    next_begin += next_columns;
    next_at = next_begin;
    if (next_column >= width) begin_product(number_of(next_stage, 6));
}

void put_b(uint units) {
    uint at = gl_LocalInvocationID.x / units * (units + 1) + gl_LocalInvocationID.x % units;
    [[unroll]] for (uint i = 0; i < B_UNITS; i++) b_shared[at + i * (THREADS / units * (units + 1))] = b_next[i];
}

// Adds the product of the slices in shared memory to `sums`.
#define MULTIPLY(AT, STRIDE, LAYOUT)                                                                                   \
    [[unroll]] for (uint k = 0; k < TILE_K; k += FRAGMENT_K) {                                                         \
        A_MATRIX a_part[ROWS];                                                                                         \
        [[unroll]] for (uint i = 0; i < ROWS; i++)                                                                     \
            coopMatLoad(a_part[i], a_shared, (subgroup_row + i * FRAGMENT_M) * A_STRIDE + k / 8, A_STRIDE,             \
                        gl_CooperativeMatrixLayoutRowMajor);                                                           \
        [[unroll]] for (uint j = 0; j < COLUMNS; j++) {                                                                \
            B_MATRIX b_part;                                                                                           \
            uint n = subgroup_column + j * FRAGMENT_N;                                                                 \
            coopMatLoad(b_part, b_shared, AT, STRIDE, LAYOUT);                                                         \
            [[unroll]] for (uint i = 0; i < ROWS; i++) sums[i][j] = coopMatMulAdd(a_part[i], b_part, sums[i][j]);      \
        }                                                                                                              \
    }

void product(uint stage) {
    uint flags = number_of(stage, 0), depth = number_of(stage, 1), columns = number_of(stage, 2);
    uint following = number_of(stage, 6);
    float scale = uintBitsToFloat(number_of(stage, 5));
    uint64_t bias = address_of(stage, 2), residual = address_of(stage, 3), factor = address_of(stage, 4);
    uint64_t c = address_of(stage, 5), preactivation = address_of(stage, 6);
    bool along = along_k(flags);
    uint subgroup_row = gl_SubgroupID / SUBGROUPS_N * (ROWS * FRAGMENT_M);
    uint subgroup_column = gl_SubgroupID % SUBGROUPS_N * (COLUMNS * FRAGMENT_N);
    for (uint column0 = 0; column0 < columns; column0 += TILE_N) {
        // What results need of memory besides sums is on its way while these are made.
        uint places[C_UNITS];
        bool is_there[C_UNITS];
        vec4 biases[C_UNITS][2], residuals[C_UNITS][2];
        uvec4 factors[C_UNITS];
        [[unroll]] for (uint e = 0; e < C_UNITS; e++) {
            uint unit = e * THREADS + gl_LocalInvocationID.x;
            uint row = first_row() + unit / C_LINE, column = column0 + unit % C_LINE * 8;
            is_there[e] = (TILE_M * C_LINE % THREADS == 0 || unit < TILE_M * C_LINE) && row < rows && column < columns;
            places[e] = row * columns + column;
            uint64_t bias_at = is_there[e] && bias != 0 ? bias + 4 * column : zeros();
            uint64_t residual_at = is_there[e] && residual != 0 ? residual + 4 * uint64_t(places[e]) : zeros();
            [[unroll]] for (uint j = 0; j < 2; j++) {
                biases[e][j] = floats_at(bias_at + 16 * j);
                residuals[e][j] = floats_at(residual_at + 16 * j);
            }
            if (FACTOR != 0)
                factors[e] = words_at(is_there[e] && factor != 0 ? factor + 2 * uint64_t(places[e]) : zeros());
        }
        C_MATRIX sums[ROWS][COLUMNS];
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++) sums[i][j] = C_MATRIX(0.0);
        for (uint k0 = 0; k0 < depth; k0 += TILE_K) {
            bool puts_a = (flags & KEPT) == 0 && (depth > TILE_K || column0 == 0);
            if (puts_a && column0 == 0 && k0 == 0 && (flags & EARLY) == 0) fetch_a(stage, 0);
            barrier();  // all have read the slices before
            put_b((along ? TILE_K : TILE_N) / 8);
            if (puts_a) put_a();
            go_on();
            fetch_b();
            bool is_last = k0 + TILE_K >= depth && column0 + TILE_N >= columns;
            if (is_last && following < stages && (number_of(following, 0) & EARLY) != 0) fetch_a(following, 0);
            else if (!is_last && puts_a && depth > TILE_K) fetch_a(stage, k0 + TILE_K < depth ? k0 + TILE_K : 0);
            barrier();
            if (along) {
                MULTIPLY(n * (TILE_K / 8 + 1) + k / 8, TILE_K / 8 + 1, gl_CooperativeMatrixLayoutColumnMajor);
            } else {
                MULTIPLY(k * (TILE_N / 8 + 1) + n / 8, TILE_N / 8 + 1, gl_CooperativeMatrixLayoutRowMajor);
            }
        }
        barrier();  // b_shared may still be read
        [[unroll]] for (uint i = 0; i < ROWS; i++)
            [[unroll]] for (uint j = 0; j < COLUMNS; j++)
                coopMatStore(sums[i][j], b_shared,
                             (subgroup_row + i * FRAGMENT_M) * C_STRIDE + (subgroup_column + j * FRAGMENT_N) / 4, C_STRIDE,
                             gl_CooperativeMatrixLayoutRowMajor);
        barrier();
        [[unroll]] for (uint e = 0; e < C_UNITS; e++) {
            uint unit = e * THREADS + gl_LocalInvocationID.x, at = unit / C_LINE * C_STRIDE + unit % C_LINE * 2;
            if (!is_there[e]) continue;
            vec4 values[2];
            [[unroll]] for (uint j = 0; j < 2; j++) values[j] = scale * uintBitsToFloat(b_shared[at + j]) + biases[e][j];
            uint64_t place = places[e];
            if (preactivation != 0)
                u32x4_buffer(preactivation + 2 * place).at[0] = uvec4(pack_halves4(values[0]), pack_halves4(values[1]));
            if (ACTIVATION != 0 && (flags & ACTIVATES) != 0)
                [[unroll]] for (uint j = 0; j < 2; j++) values[j] = activate(ACTIVATION - 1, values[j]);
            [[unroll]] for (uint j = 0; j < 2; j++) values[j] += residuals[e][j];
            if (FACTOR != 0 && (flags & MULTIPLIES) != 0) {
                values[0] *= activation_slope(FACTOR - 1, unpack_halves4(factors[e].xy));
                values[1] *= activation_slope(FACTOR - 1, unpack_halves4(factors[e].zw));
            }
            if ((flags & HALVES) != 0) {
                uvec4 halves = uvec4(pack_halves4(values[0]), pack_halves4(values[1]));
                u32x4_buffer(c + 2 * place).at[0] = halves;
                if ((flags & KEEPS) != 0) b_shared[at] = halves;
            } else {
                [[unroll]] for (uint j = 0; j < 2; j++) {
                    f32x4_buffer(c + 4 * place + 16 * j).at[0] = values[j];
                    if ((flags & KEEPS) != 0) b_shared[at + j] = floatBitsToUint(values[j]);
                }
            }
        }
    }
}

// --- norms and losses: SLOTS rows at a time, of LANES threads each ---

// The row that a thread has with number `e`, or another where it has none, and whether it has.
uint row_of(uint e) {
    uint row = first_row() + min(e * SLOTS + thread_index() / LANES, TILE_M - 1);
    return min(row, rows - 1);
}

bool is_live(uint e) {
    uint row = e * SLOTS + thread_index() / LANES;
    return (TILE_M % SLOTS == 0 || row < TILE_M) && first_row() + row < rows;
}

// A lane's first column of a vector of the row, which has such a column where that is below WIDTH.
uint column_of(uint k) { return (k * LANES + thread_index() % LANES) * 4; }

bool is_inside(uint k) { return WIDTH % (LANES * 4) == 0 || column_of(k) < WIDTH; }

vec4 of_row(uint64_t base, uint e, uint k) {
    return is_inside(k) ? floats_at(base + 4 * (row_of(e) * WIDTH + column_of(k))) : vec4(0.0);
}

// Four numbers of the row that the product before has left, of 32 bits or of 16.
vec4 of_left(uint e, uint k) {
    return is_inside(k) ? uintBitsToFloat(b_shared[(row_of(e) - first_row()) * C_STRIDE + column_of(k) / 4]) : vec4(0.0);
}

vec4 of_left_halves(uint e, uint k) {
    if (!is_inside(k)) return vec4(0.0);
    uvec4 halves = b_shared[(row_of(e) - first_row()) * C_STRIDE + column_of(k) / 8 * 2];
    return unpack_halves4(column_of(k) % 8 == 0 ? halves.xy : halves.zw);
}

vec4 of_column(uint64_t base, uint k) { return is_inside(k) ? floats_at(base + 4 * column_of(k)) : vec4(0.0); }

// Four numbers of row `e` in 16 bits, by one lane for two, to memory and, where the next product reads them there, to
// shared memory.
void store_rounded(uint64_t base, uint e, uint k, vec4 value, bool keeps) {
    uvec2 halves = pack_halves4(value), others = subgroupShuffleXor(halves, 1);
    if (column_of(k) % 8 != 0 || !is_live(e) || !is_inside(k)) return;
    u32x4_buffer(base + 2 * (row_of(e) * WIDTH + column_of(k))).at[0] = uvec4(halves, others);
    if (keeps) a_shared[(row_of(e) - first_row()) * A_STRIDE + column_of(k) / 8] = uvec4(halves, others);
}

void norm(uint stage) {
    bool keeps = (number_of(stage, 0) & KEEPS) != 0, is_left = (number_of(stage, 0) & LEFT) != 0;
    uint64_t x = address_of(stage, 0), weight = address_of(stage, 1), shift = address_of(stage, 2);
    uint64_t y = address_of(stage, 3), mean = address_of(stage, 4), scale = address_of(stage, 5);
    vec4 values[EACH][NORM_VECTORS], weights[NORM_VECTORS], biases[NORM_VECTORS];
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
        weights[k] = of_column(weight, k);
        biases[k] = of_column(shift != 0 ? shift : weight, k);
    }
    if (is_left) {
        [[unroll]] for (uint e = 0; e < EACH; e++)
            [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) values[e][k] = of_left(e, k);
    } else {
        [[unroll]] for (uint e = 0; e < EACH; e++)
            [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) values[e][k] = of_row(x, e, k);
    }
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        vec2 found = norm_of_row(values[e], thread_index() % LANES, uintBitsToFloat(number_of(stage, 1)));
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
            vec4 result = normalized(values[e][k], found.y, weights[k]);
            if (shift != 0) result = shifted(result, biases[k]);
            store_rounded(y, e, k, result, keeps);
        }
        if (!is_live(e) || thread_index() % LANES != 0) continue;
        if (scale != 0) f32_buffer(scale).at[row_of(e)] = found.y;
        if (mean != 0) f32_buffer(mean).at[row_of(e)] = found.x;
    }
}

void norm_backward(uint stage) {
    bool keeps = (number_of(stage, 0) & KEEPS) != 0, is_left = (number_of(stage, 0) & LEFT) != 0;
    uint64_t x = address_of(stage, 0), dy = address_of(stage, 1), weight = address_of(stage, 2);
    uint64_t mean = address_of(stage, 3), scale = address_of(stage, 4), addend = address_of(stage, 5);
    uint64_t dx = address_of(stage, 6), rounded = address_of(stage, 7);
    uint64_t first_scale = address_of(stage, 9), second_scale = address_of(stage, 10);
    NormRow of_rows[EACH];
    vec4 addends[EACH][NORM_VECTORS], weights[NORM_VECTORS], dweight[NORM_VECTORS], dbias[NORM_VECTORS];
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        of_rows[e].center = CENTERED == 1 ? f32_buffer(mean).at[row_of(e)] : 0.0;
        of_rows[e].scale = f32_buffer(scale).at[row_of(e)];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
            of_rows[e].x[k] = of_row(x, e, k);
            uvec2 halves = u32x2_buffer(dy + 2 * (is_inside(k) ? row_of(e) * WIDTH + column_of(k) : 0)).at[0];
            of_rows[e].dy[k] = is_left ? of_left_halves(e, k) : is_inside(k) ? unpack_halves4(halves) : vec4(0.0);
            addends[e][k] = of_row(addend != 0 ? addend : x, e, k);
        }
    }
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
        weights[k] = of_column(weight, k);
        dweight[k] = dbias[k] = vec4(0.0);
    }
    float dy_factor = 1.0;
    if (first_scale != 0)
        dy_factor = f32_buffer(first_scale).at[0] * f32_buffer(second_scale).at[0] * uintBitsToFloat(number_of(stage, 1));
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        vec4 dx_row[NORM_VECTORS];
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) of_rows[e].dy[k] = scaled(of_rows[e].dy[k], dy_factor);
        gradient_of_row(of_rows[e], weights, is_live(e), dweight, dbias, dx_row);
        [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
            vec4 value = addend != 0 ? added(dx_row[k], addends[e][k]) : dx_row[k];
            if (is_live(e) && is_inside(k))
                f32x4_buffer(dx + 4 * (row_of(e) * WIDTH + column_of(k))).at[0] = value;
            if (rounded != 0) store_rounded(rounded, e, k, value, keeps);
        }
    }
    // The sums over the slots: those of the weight's gradient by the first LANES threads, of the bias's by the next.
    uint thread = thread_index();
    uint64_t parts = address_of(stage, 8) + 4 * gl_WorkGroupID.x * (SUMS * WIDTH);
    [[unroll]] for (uint k = 0; k < NORM_VECTORS; k++) {
        barrier();
        b_shared[thread] = floatBitsToUint(dweight[k]);
        b_shared[THREADS + thread] = floatBitsToUint(dbias[k]);
        barrier();
        if (thread >= SUMS * LANES || !is_inside(k)) continue;
        vec4 sum = vec4(0.0);
        for (uint slot = 0; slot < SLOTS; slot++)
            sum += uintBitsToFloat(b_shared[thread / LANES * THREADS + slot * LANES + thread % LANES]);
        f32x4_buffer(parts + 4 * (thread / LANES * WIDTH + column_of(k))).at[0] = sum;
    }
}

void cross_entropy(uint stage) {
    uint width = number_of(stage, 1);
    float soft_cap = uintBitsToFloat(number_of(stage, 2)), scale = uintBitsToFloat(number_of(stage, 3));
    uint64_t logits = address_of(stage, 0), dlogits = address_of(stage, 3);
    i32_buffer targets = i32_buffer(address_of(stage, 1));
    f32_buffer losses = f32_buffer(address_of(stage, 2));
    vec4 values[EACH][LOGITS];
    int wanted[EACH];
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        wanted[e] = targets.at[row_of(e)];
        [[unroll]] for (uint k = 0; k < LOGITS; k++) {
            bool there = column_of(k) < width;
            uvec2 halves = u32x2_buffer(logits + 2 * (row_of(e) * width + (there ? column_of(k) : 0))).at[0];
            values[e][k] = there ? unpack_halves4(halves) : vec4(LOWEST);
        }
    }
    [[unroll]] for (uint e = 0; e < EACH; e++) {
        bool counts = wanted[e] >= 0;
        vec2 sum = vec2(LOWEST, 0.0);
        float chosen = 0.0;
        bool has_target = column_of(0) == 0 && !(counts && wanted[e] < width);  // this lane writes the loss
        [[unroll]] for (uint k = 0; k < LOGITS; k++) {
            uint hit = uint(wanted[e]) - column_of(k);  // wraps around for another column
            if (column_of(k) >= width) continue;
            if (soft_cap != 0.0) {
                vec4 ratio = values[e][k] / soft_cap;
                [[unroll]] for (uint i = 0; i < 4; i++) values[e][k][i] = soft_cap * accurate_tanh(ratio[i]);
            }
            vec4 value = values[e][k];
            sum.x = max(sum.x, max(max(value.x, value.y), max(value.z, value.w)));
            if (counts && hit < 4) {
                chosen = value[hit];
                has_target = true;
            }
        }
        [[unroll]] for (uint k = 0; k < LOGITS; k++)
            if (column_of(k) < width) sum.y += dot(exp(values[e][k] - sum.x), vec4(1.0));
        sum = row_exponentials(sum);
        if (is_live(e) && has_target) {
            float loss = wanted[e] < width ? (sum.x - chosen) + log(sum.y) : uintBitsToFloat(0x7fc00000u);
            losses.at[row_of(e)] = counts ? loss : 0.0;
        }
        [[unroll]] for (uint k = 0; k < LOGITS; k++) {
            uint hit = uint(wanted[e]) - column_of(k);
            if (!is_live(e) || column_of(k) >= width) continue;
            vec4 gradient = scale / sum.y * exp(values[e][k] - sum.x);
            if (counts && hit < 4) gradient[hit] -= scale;
            if (soft_cap != 0.0) {
                vec4 ratio = values[e][k] / soft_cap;
                gradient *= 1.0 - ratio * ratio;
            }
            u32x2_buffer(dlogits + 2 * (row_of(e) * width + column_of(k))).at[0] =
                counts ? pack_halves4(gradient) : uvec2(0);
        }
    }
}

void main() {
    for (uint i = gl_LocalInvocationID.x; i < stages * WORDS; i += THREADS) words[i] = u32_buffer(uint64_t(table)).at[i];
    barrier();
    uint first = number_of(0, 7);
    begin_product(first);
    fetch_b();
    if (first < stages && (number_of(first, 0) & EARLY) != 0) fetch_a(first, 0);
    for (uint stage = 0; stage < stages; stage++) {
        uint kind = number_of(stage, 0) & 255u;
        if (kind == PRODUCT) product(stage);
        else if (kind == NORM) norm(stage);
        else if (kind == NORM_GRADIENT) norm_backward(stage);
        else cross_entropy(stage);
        controlBarrier(gl_ScopeWorkgroup, gl_ScopeWorkgroup, gl_StorageSemanticsBuffer | gl_StorageSemanticsShared,
                       gl_SemanticsAcquireRelease);
    }
}
