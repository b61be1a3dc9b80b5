// Where row `row` of a matrix in a strided array starts: rows are counted along two axes, the inner one `inner` long.
uint row_start(uint row, uint inner, uint outer_stride, uint inner_stride) {
    return row / inner * outer_stride + row % inner * inner_stride;
}
