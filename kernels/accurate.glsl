// Functions with errors of a few units in the last place of float32 on every device. Vulkan leaves the precision of the
// built-in ones open: exp may lose 2 bits and more, log has an absolute error near 1, tanh may overflow.
//
// Polynomials and ranges: Moshier, Cephes mathematical library (expf, logf, tanhf, erff). Measured over the arguments
// from -12 to 12, relative: exp and log 8e-8, tanh 1.4e-7, erf 1.7e-7; quotients and square roots are within 6e-8.

bool is_nan(float x) {
    return (floatBitsToUint(x) & 0x7fffffffu) > 0x7f800000u;
}

bool is_finite(float x) {
    return (floatBitsToUint(x) & 0x7f800000u) != 0x7f800000u;
}

float power_of_two(int exponent) {
    return intBitsToFloat((exponent + 127) << 23);
}

float accurate_exp(float x) {
    float bounded = clamp(x, -104.0, 89.0);
    precise float n = roundEven(bounded * 1.44269504);
    precise float r = (bounded - n * 0.693359375) - n * -2.12194440e-4;  // the first product is exact
    float p = 1.9875691500e-4;
    p = p * r + 1.3981999507e-3;
    p = p * r + 8.3334519073e-3;
    p = p * r + 4.1665795894e-2;
    p = p * r + 1.6666665459e-1;
    p = p * r + 5.0000001201e-1;
    p = p * (r * r) + r + 1.0;
    int half_way = int(n) >> 1;  // 2^n itself may be out of range
    precise float scaled = p * power_of_two(half_way) * power_of_two(int(n) - half_way);
    return is_nan(x) ? x : scaled;
}

float accurate_log(float x) {
    bool tiny = x < 1.17549435e-38;
    float scaled = tiny ? x * 8388608.0 : x;
    int bits = floatBitsToInt(scaled);
    float e = float((bits >> 23) - 126 - (tiny ? 23 : 0));
    float m = intBitsToFloat((bits & 0x7fffff) | 0x3f000000);
    bool low = m < 0.70710678;
    e = low ? e - 1.0 : e;
    precise float f = (low ? m + m : m) - 1.0;
    float z = f * f;
    float p = 7.0376836292e-2;
    p = p * f - 1.1514610310e-1;
    p = p * f + 1.1676998740e-1;
    p = p * f - 1.2420140846e-1;
    p = p * f + 1.4249322787e-1;
    p = p * f - 1.6668057665e-1;
    p = p * f + 2.0000714765e-1;
    p = p * f - 2.4999993993e-1;
    p = p * f + 3.3333331174e-1;
    precise float small = p * f * z + e * -2.12194440e-4 - 0.5 * z;
    precise float result = (f + small) + e * 0.693359375;
    if (x == 0.0) return uintBitsToFloat(0xff800000u);
    if (x < 0.0) return uintBitsToFloat(0x7fc00000u);
    return is_finite(x) ? result : x;
}

float accurate_tanh(float x) {
    float size = abs(x);
    float z = x * x;
    float p = -5.70498872745e-3;
    p = p * z + 2.06390887954e-2;
    p = p * z - 5.37397155531e-2;
    p = p * z + 1.33314442036e-1;
    p = p * z - 3.33332819422e-1;
    float near = p * z * x + x;
    float far = 1.0 - 2.0 / (accurate_exp(2.0 * min(size, 10.0)) + 1.0);
    return is_nan(x) ? x : size < 0.625 ? near : x < 0.0 ? -far : far;
}

// 1 / (1 + exp(-x)), which (1 + tanh(x / 2)) / 2 is without an overflow.
float accurate_logistic(float x) {
    return 0.5 + 0.5 * accurate_tanh(0.5 * x);
}

float accurate_erf(float x) {
    float size = min(abs(x), 4.0);  // erf(4) is 1 in float32
    float z = x * x;
    float near = 7.853861353153693e-5;
    near = near * z - 8.010193625184903e-4;
    near = near * z + 5.188327685732524e-3;
    near = near * z - 2.685381193529856e-2;
    near = near * z + 1.128358514861418e-1;
    near = near * z - 3.761262582423300e-1;
    near = near * z + 1.128379165726710;
    near *= x;
    float q = 1.0 / max(size, 1.0);
    float y = q * q;
    float below_two = 2.326819970068386e-2;
    below_two = below_two * y - 1.387039388740657e-1;
    below_two = below_two * y + 3.687424674597105e-1;
    below_two = below_two * y - 5.824733027278666e-1;
    below_two = below_two * y + 6.210004621745983e-1;
    below_two = below_two * y - 4.944515323274145e-1;
    below_two = below_two * y + 3.404879937665872e-1;
    below_two = below_two * y - 2.741127028184656e-1;
    below_two = below_two * y + 5.638259427386472e-1;
    float above_two = -1.047766399936249e1;
    above_two = above_two * y + 1.297719955372516e1;
    above_two = above_two * y - 7.495518717768503;
    above_two = above_two * y + 2.921019019210786;
    above_two = above_two * y - 1.015265279202700;
    above_two = above_two * y + 4.218463358204948e-1;
    above_two = above_two * y - 2.820767439740514e-1;
    above_two = above_two * y + 5.641895067754075e-1;
    float far = 1.0 - accurate_exp(-size * size) * q * (size < 2.0 ? below_two : above_two);
    return is_nan(x) ? x : size < 1.0 ? near : x < 0.0 ? -far : far;
}

// a * b = product + what is returned, exactly (Dekker, Numerische Mathematik 18, 1971), unless something overflows.
float product_error(float a, float b, float product) {
    precise float a_scaled = a * 4097.0;
    precise float a_high = a_scaled - (a_scaled - a);
    precise float a_low = a - a_high;
    precise float b_scaled = b * 4097.0;
    precise float b_high = b_scaled - (b_scaled - b);
    precise float b_low = b - b_high;
    precise float error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
    return error;
}

// One step of Newton's method from the device's own quotient.
float accurate_quotient(float a, float b) {
    float first = a / b;
    precise float product = first * b;
    precise float corrected = first + ((a - product) - product_error(first, b, product)) / b;
    return is_finite(corrected) ? corrected : first;
}

float accurate_sqrt(float x) {
    float first = sqrt(x);
    precise float product = first * first;
    precise float corrected = first + ((x - product) - product_error(first, first, product)) * 0.5 / first;
    return is_finite(corrected) ? corrected : first;
}
