/* The loops of rows.c, for one kind of vectors; see vectors.h. */

/* ROWS rows and two vectors of columns, whose sums go on from those in `out` unless this is the first piece of the depth. */
#define TILE(ROWS) \
    TARGET static void NAMED(tile##ROWS)(const float *x, ptrdiff_t x_stride, const float *weight, \
                                         ptrdiff_t weight_stride, float *out, ptrdiff_t out_stride, ptrdiff_t depth, \
                                         int is_first) { \
        VECTOR sums[ROWS][2]; \
        UNROLLED for (int row = 0; row < ROWS; row++) { \
            sums[row][0] = is_first ? ZERO : LOAD(out + row * out_stride); \
            sums[row][1] = is_first ? ZERO : LOAD(out + row * out_stride + LANES); \
        } \
        for (ptrdiff_t k = 0; k < depth; k++, weight += weight_stride) { \
            VECTOR left = LOAD(weight), right = LOAD(weight + LANES); \
            UNROLLED for (int row = 0; row < ROWS; row++) { \
                VECTOR factor = SPLAT(x[row * x_stride + k]); \
                sums[row][0] = FUSED(factor, left, sums[row][0]); \
                sums[row][1] = FUSED(factor, right, sums[row][1]); \
            } \
        } \
        UNROLLED for (int row = 0; row < ROWS; row++) { \
            STORE(out + row * out_stride, sums[row][0]); \
            STORE(out + row * out_stride + LANES, sums[row][1]); \
        } \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
#undef TILE

/* All rows of two vectors of columns, in the fewest tiles, about equally high. */
TARGET static void NAMED(panel)(const float *x, ptrdiff_t x_stride, const float *weight, ptrdiff_t weight_stride, float *out,
                                ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t depth, int is_first) {
    for (ptrdiff_t tiles = (rows + 5) / 6, height; tiles > 0; tiles--, rows -= height) {
        height = (rows + tiles - 1) / tiles;
        switch (height) {
        case 6: NAMED(tile6)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        case 5: NAMED(tile5)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        case 4: NAMED(tile4)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        case 3: NAMED(tile3)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        case 2: NAMED(tile2)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        default: NAMED(tile1)(x, x_stride, weight, weight_stride, out, out_stride, depth, is_first); break;
        }
        x += height * x_stride;
        out += height * out_stride;
    }
}

/* Each sum goes along the depth from its beginning to its end, in pieces between which it stands in `out`. Few rows take
 * the weight as it lies, in pieces so short that it is read in order; many take panels of it, copied to where they are
 * neighbours in the cache. */
TARGET static void NAMED(along_columns)(const float *x, ptrdiff_t x_stride, const float *weight, ptrdiff_t weight_stride,
                                        float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t depth,
                                        ptrdiff_t columns) {
    float copied[MANY_DEPTH * 2 * LANES];
    ptrdiff_t width = 2 * LANES, most = rows < MANY_ROWS ? FEW_DEPTH : MANY_DEPTH, n;
    for (ptrdiff_t start = 0; start < depth; start += most) {
        ptrdiff_t count = depth - start < most ? depth - start : most;
        const float *piece = weight + start * weight_stride;
        for (n = 0; n + width <= columns; n += width) {
            const float *panel = piece + n;
            ptrdiff_t stride = weight_stride;
            if (rows >= MANY_ROWS) {
                for (ptrdiff_t k = 0; k < count; k++)
                    memcpy(copied + k * width, panel + k * weight_stride, (size_t)width * sizeof(float));
                panel = copied;
                stride = width;
            } else { /* what comes next in these columns is on its way while this is multiplied */
                for (ptrdiff_t k = count; k < 2 * count && start + k < depth; k++)
                    __builtin_prefetch(panel + k * weight_stride);
            }
            NAMED(panel)(x + start, x_stride, panel, stride, out + n, out_stride, rows, count, !start);
        }
        for (; n < columns; n++)
            for (ptrdiff_t row = 0; row < rows; row++) {
                float sum = start ? out[row * out_stride + n] : 0.0f;
                for (ptrdiff_t k = 0; k < count; k++)
                    sum = ONE_FUSED(x[row * x_stride + start + k], piece[k * weight_stride + n], sum);
                out[row * out_stride + n] = sum;
            }
    }
}

/* ROWS rows times COLUMNS rows of the transpose: LANES sums of every LANES-th term, which are added at the end in order,
 * and then the terms that are left. */
#define DOTS(ROWS, COLUMNS) \
    TARGET static void NAMED(dots##ROWS##x##COLUMNS)(const float *x, ptrdiff_t x_stride, const float *weight, \
                                                     ptrdiff_t weight_stride, float *out, ptrdiff_t out_stride, \
                                                     ptrdiff_t depth) { \
        VECTOR sums[ROWS][COLUMNS]; \
        UNROLLED for (int row = 0; row < ROWS; row++) UNROLLED for (int n = 0; n < COLUMNS; n++) sums[row][n] = ZERO; \
        ptrdiff_t k = 0; \
        for (; k + LANES <= depth; k += LANES) { \
            UNROLLED for (int n = 0; n < COLUMNS; n++) { \
                VECTOR factor = LOAD(weight + n * weight_stride + k); \
                UNROLLED for (int row = 0; row < ROWS; row++) \
                    sums[row][n] = FUSED(LOAD(x + row * x_stride + k), factor, sums[row][n]); \
            } \
        } \
        for (int row = 0; row < ROWS; row++) \
            for (int n = 0; n < COLUMNS; n++) { \
                float lanes[LANES], sum = 0.0f; \
                STORE(lanes, sums[row][n]); \
                for (int lane = 0; lane < LANES; lane++) sum += lanes[lane]; \
                for (ptrdiff_t rest = k; rest < depth; rest++) \
                    sum = ONE_FUSED(x[row * x_stride + rest], weight[n * weight_stride + rest], sum); \
                out[row * out_stride + n] = sum; \
            } \
    }
DOTS(1, 1)
DOTS(1, 4)
DOTS(2, 4)
DOTS(3, 4)
#undef DOTS

TARGET static void NAMED(along_depth)(const float *x, ptrdiff_t x_stride, const float *weight, ptrdiff_t weight_stride,
                                      float *out, ptrdiff_t out_stride, ptrdiff_t rows, ptrdiff_t depth,
                                      ptrdiff_t columns) {
    ptrdiff_t n = 0, row;
    for (; n + 4 <= columns; n += 4) {
        const float *part = weight + n * weight_stride;
        for (row = 0; row + 3 <= rows; row += 3)
            NAMED(dots3x4)(x + row * x_stride, x_stride, part, weight_stride, out + row * out_stride + n, out_stride, depth);
        if (rows - row == 2)
            NAMED(dots2x4)(x + row * x_stride, x_stride, part, weight_stride, out + row * out_stride + n, out_stride, depth);
        if (rows - row == 1)
            NAMED(dots1x4)(x + row * x_stride, x_stride, part, weight_stride, out + row * out_stride + n, out_stride, depth);
    }
    for (; n < columns; n++)
        for (row = 0; row < rows; row++)
            NAMED(dots1x1)(x + row * x_stride, x_stride, weight + n * weight_stride, weight_stride,
                           out + row * out_stride + n, out_stride, depth);
}

TARGET static void NAMED(linear)(const rows_product *part) {
    if (part->transposed)
        NAMED(along_depth)(part->x, part->x_stride, part->weight, part->weight_stride, part->sums, part->sums_stride,
                           part->rows, part->depth, part->columns);
    else
        NAMED(along_columns)(part->x, part->x_stride, part->weight, part->weight_stride, part->sums, part->sums_stride,
                             part->rows, part->depth, part->columns);
    for (ptrdiff_t row = 0; row < part->rows; row++) {
        const float *sums = part->sums + row * part->sums_stride, *bias = part->bias;
        float *y = part->out + row * part->out_stride;
        if (y != sums) memcpy(y, sums, (size_t)part->columns * sizeof *y);
        if (bias)
            for (ptrdiff_t n = 0; n < part->columns; n++) y[n] += bias[n];
        if (part->residual)
            for (ptrdiff_t n = 0; n < part->columns; n++) y[n] += part->residual[row * part->out_stride + n];
    }
}

/* One row and one head: the weighted mean of values, whose weights are exponentials of the scores. */
TARGET static void NAMED(attend)(const float *query, const float *keys, const float *values, const int32_t *table,
                                 ptrdiff_t length, float soft_cap, float *scores, float *out, ptrdiff_t width,
                                 ptrdiff_t tokens, ptrdiff_t stride) {
    float scale = 1.0f / sqrtf((float)width), largest = -INFINITY, sum = 0.0f;
    for (ptrdiff_t start = 0; start < length; start += tokens) {
        ptrdiff_t count = length - start < tokens ? length - start : tokens;
        NAMED(along_depth)(query, width, keys + table[start / tokens] * tokens * stride, stride, scores + start, 0, 1, width,
                           count);
    }
    for (ptrdiff_t p = 0; p < length; p++) {
        scores[p] *= scale;
        if (soft_cap != 0.0f) scores[p] = soft_cap * tanhf(scores[p] / soft_cap);
        if (!(scores[p] <= largest)) largest = scores[p]; /* also where it is not a number, which then goes on */
    }
    for (ptrdiff_t p = 0; p < length; p++) sum += scores[p] = expf(scores[p] - largest);
    for (ptrdiff_t start = 0; start < length; start += tokens) {
        ptrdiff_t count = length - start < tokens ? length - start : tokens, d = 0;
        const float *block = values + table[start / tokens] * tokens * stride;
        for (; d + 2 * LANES <= width; d += 2 * LANES)
            NAMED(tile1)(scores + start, 0, block + d, stride, out + d, 0, count, !start);
        for (; d < width; d++) {
            float total = start ? out[d] : 0.0f;
            for (ptrdiff_t p = 0; p < count; p++) total = ONE_FUSED(scores[start + p], block[p * stride + d], total);
            out[d] = total;
        }
    }
    for (ptrdiff_t d = 0; d < width; d++) out[d] /= sum;
}
