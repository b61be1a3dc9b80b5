// The sums of the columns of a product's right operand, which a workgroup of the first row of tiles collects while it
// fetches them. Included after matmul.glsl; reads the push constants b_sums and columns.

shared vec4 line_sums[HAS_SUMS != 0 ? THREADS : 1];

// Adds up what threads `line_units` apart have, in their order, and stores four neighbours from `column`. To be called
// by all threads of a workgroup; `column` is of interest in the first `line_units` of them.
void store_column_sums(vec4 sum, uint line_units, uint column, uint64_t plane) {
    uint thread = gl_LocalInvocationID.x;
    barrier();
    line_sums[thread] = sum;
    barrier();
    if (thread >= line_units) return;
    for (uint other = thread + line_units; other < THREADS; other += line_units) sum += line_sums[other];
    for (uint i = 0; i < 4 && column + i < columns; i++)
        f32_buffer(uint64_t(b_sums) + 4 * (plane * columns)).at[column + i] = sum[i];
}
