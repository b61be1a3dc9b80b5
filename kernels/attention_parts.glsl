// Attention from what attention_cached makes of the parts of a row's keys, with the same bits wherever it is computed: they
// are put together one after the other, relative to the largest score so far,
//
//     result' = exp2(maximum - maximum') result + exp2(maximum_s - maximum') partial_s, and the sum of exponentials alike.
#define NO_MAXIMUM uintBitsToFloat(0xff7fffffu)  // before the first part

float shrunk(float maximum, float later) { return maximum == later ? 1.0 : exp2(maximum - later); }

float joined(float result, float factor, float partial, float partial_factor) {
    precise const float kept = result * factor;
    return fma(partial, partial_factor, kept);
}
