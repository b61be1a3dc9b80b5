// Functions whose precision Vulkan leaves open or that GLSL lacks, made of exp, which is precise everywhere.

// tanh to an absolute error of 1.5e-7, without overflow.
float bounded_tanh(float x) {
    float magnitude = 1.0 - 2.0 / (exp(2.0 * abs(x)) + 1.0);
    return x < 0.0 ? -magnitude : magnitude;
}

vec4 bounded_tanh(vec4 x) {
    return vec4(bounded_tanh(x.x), bounded_tanh(x.y), bounded_tanh(x.z), bounded_tanh(x.w));
}

// erf to an absolute error of 2e-7 (Abramowitz and Stegun, 7.1.26).
float error_function(float x) {
    float t = 1.0 / (1.0 + 0.3275911 * abs(x));
    float polynomial = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    float magnitude = 1.0 - polynomial * exp(-x * x);
    return x < 0.0 ? -magnitude : magnitude;
}
