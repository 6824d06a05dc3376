/* The arithmetic of _spectra.c, which includes this once for each kind of processor: KIND ends all names here, and the
target that is set there decides which instructions they become. */

#define lanes FN(lanes_of)
#define wide_lanes FN(wide_lanes_of)
#define complex_lanes FN(complex_lanes_of)

typedef float lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef double wide_lanes __attribute__((vector_size(4 * LANES), aligned(8), may_alias));

typedef struct {
    lanes re, im;
} complex_lanes;

INLINE complex_lanes FN(times)(complex_lanes a, complex_value w)
{
    return (complex_lanes){a.re * w.re - a.im * w.im, a.re * w.im + a.im * w.re};
}

/* Lay out `steps` hops so that rows[r * stride + t] is sample t * hop_length + r; zeros are behind the last sample. */
static void FN(transpose)(const float *samples, Py_ssize_t count, Py_ssize_t hop_length, Py_ssize_t steps,
                          float *rows, Py_ssize_t stride)
{
    Py_ssize_t whole = count / hop_length < steps ? count / hop_length : steps;
    for (Py_ssize_t first = 0; first < hop_length; first += LANES) {
        Py_ssize_t end = first + LANES < hop_length ? first + LANES : hop_length;
        for (Py_ssize_t step = 0; step < whole; step++)
            for (Py_ssize_t row = first; row < end; row++)
                rows[row * stride + step] = samples[step * hop_length + row];
        for (Py_ssize_t row = first; row < end; row++)
            for (Py_ssize_t step = whole; step < stride; step++) {
                Py_ssize_t place = step * hop_length + row;
                rows[row * stride + step] = step < steps && place < count ? samples[place] : 0.0f;
            }
    }
}

INLINE void FN(radix4)(const complex_lanes *in, complex_lanes *out, Py_ssize_t n, Py_ssize_t s,
                       const complex_value *twiddles, Py_ssize_t turn)
{
    Py_ssize_t m = n / 4;
    for (Py_ssize_t p = 0; p < m; p++) {
        complex_value w1 = twiddles[p * turn], w2 = twiddles[2 * p * turn], w3 = twiddles[3 * p * turn];
        for (Py_ssize_t q = 0; q < s; q++) {
            complex_lanes a = in[q + s * p], b = in[q + s * (p + m)];
            complex_lanes c = in[q + s * (p + 2 * m)], d = in[q + s * (p + 3 * m)];
            complex_lanes sum = {a.re + c.re, a.im + c.im}, gap = {a.re - c.re, a.im - c.im};
            complex_lanes other = {b.re + d.re, b.im + d.im}, turned = {d.im - b.im, b.re - d.re};
            complex_lanes *to = out + q + s * 4 * p;
            to[0] = (complex_lanes){sum.re + other.re, sum.im + other.im};
            to[s] = FN(times)((complex_lanes){gap.re - turned.re, gap.im - turned.im}, w1);
            to[2 * s] = FN(times)((complex_lanes){sum.re - other.re, sum.im - other.im}, w2);
            to[3 * s] = FN(times)((complex_lanes){gap.re + turned.re, gap.im + turned.im}, w3);
        }
    }
}

/* Transform n complex values; returns where the result is, which is one of the two buffers. */
INLINE complex_lanes *FN(transform)(complex_lanes *from, complex_lanes *to, Py_ssize_t n,
                                    const complex_value *twiddles, Py_ssize_t n_fft)
{
    Py_ssize_t s = 1;
    for (; n >= 4; n /= 4, s *= 4) {
        FN(radix4)(from, to, n, s, twiddles, n_fft / n);
        complex_lanes *other = from;
        from = to;
        to = other;
    }
    if (n == 2) {
        for (Py_ssize_t q = 0; q < s; q++) {
            complex_lanes a = from[q], b = from[q + s];
            to[q] = (complex_lanes){a.re + b.re, a.im + b.im};
            to[q + s] = (complex_lanes){a.re - b.re, a.im - b.im};
        }
        return to;
    }
    return from;
}

/* Window the frames of one vector: even samples become real parts, odd ones imaginary parts. */
INLINE void FN(load)(const front_end *fe, const float *rows, Py_ssize_t stride, Py_ssize_t first,
                     complex_lanes *out)
{
    Py_ssize_t row = 0, step = first;
    float *values = (float *)out;
    for (Py_ssize_t n = 0; n < fe->n_fft; n++) {
        *(lanes *)(values + n * LANES) = *(const lanes *)(rows + row * stride + step) * fe->window[n];
        if (++row == fe->hop_length) {
            row = 0;
            step++;
        }
    }
}

/* Make the powers of the real transform's n_fft / 2 + 1 bins of the complex one's values. */
INLINE void FN(powers)(const front_end *fe, const complex_lanes *z, lanes *power)
{
    Py_ssize_t n = fe->n_fft / 2;
    lanes first = z[0].re + z[0].im, last = z[0].re - z[0].im;
    power[0] = first * first;
    power[n] = last * last;
    for (Py_ssize_t k = 1; k <= n - k; k++) {
        complex_lanes a = z[k], b = z[n - k];
        complex_lanes even = {(a.re + b.re) * 0.5f, (a.im - b.im) * 0.5f};
        complex_lanes gap = {(a.im + b.im) * 0.5f, (b.re - a.re) * 0.5f};
        complex_lanes odd = FN(times)(gap, fe->twiddles[k]);
        lanes re = even.re + odd.re, im = even.im + odd.im;
        lanes re_mirror = even.re - odd.re, im_mirror = even.im - odd.im;
        power[k] = re * re + im * im;
        power[n - k] = re_mirror * re_mirror + im_mirror * im_mirror;
    }
}

INLINE void FN(store)(float *out, lanes value, Py_ssize_t count)
{
    for (Py_ssize_t lane = 0; lane < count; lane++)
        out[lane] = value[lane];
}

INLINE void FN(mel_bands)(const front_end *fe, const lanes *power, figures *out, Py_ssize_t first, Py_ssize_t count)
{
    lanes total = {0};
    Py_ssize_t bins = fe->n_fft / 2 + 1;
    for (Py_ssize_t k = 0; k < bins; k++)
        total += power[k];
    FN(store)(out->mean_power + first, total * (1.0f / (float)bins), count);
    for (Py_ssize_t band = 0; band < fe->n_mels; band++) {
        const lanes *from = power + fe->band_bin[band];
        lanes sum = {0};
        for (int32_t w = fe->band_start[band]; w < fe->band_start[band + 1]; w++)
            sum += *from++ * fe->weights[w];
        FN(store)(out->mel + band * out->frames + first, sum, count);
    }
}

/* Find the bin of one lane below which `share` of the sum lies, as PlainSpectra does. */
INLINE void FN(find_rolloff)(const front_end *fe, const float *magnitude, const float *running, figures *out,
                             Py_ssize_t frame, Py_ssize_t lane)
{
    Py_ssize_t bins = fe->n_fft / 2 + 1, blocks = (bins + fe->block - 1) / fe->block, block = 0;
    float total = running[blocks * LANES + lane], threshold = out->share * total;
    while (block < blocks - 1 && running[(block + 1) * LANES + lane] < threshold)
        block++;
    float sum = running[block * LANES + lane], nearest = INFINITY;
    Py_ssize_t below = 0;
    for (Py_ssize_t inside = 0; inside < fe->block; inside++) {
        /* What is read past the last bin does not count: the threshold has been reached before. */
        Py_ssize_t bin = block * fe->block + inside;
        sum += magnitude[(bin < bins ? bin : bins - 1) * LANES + lane];
        float missing = sum - threshold;
        below += missing < 0.0f;
        missing = fabsf(missing);
        nearest = missing < nearest ? missing : nearest;
    }
    out->rolloff[frame] = (int32_t)(block * fe->block + below);
    out->close[frame] = total > 0.0f && nearest <= out->noise * total;
}

INLINE void FN(statistics)(const front_end *fe, lanes *power, lanes *running, figures *out, Py_ssize_t first,
                           Py_ssize_t count)
{
    Py_ssize_t bins = fe->n_fft / 2 + 1, number = 1;
    lanes weighted = {0};
    running[0] = weighted;
    for (Py_ssize_t start = 0; start < bins; start += fe->block, number++) {
        lanes sum = {0};
        for (Py_ssize_t k = start; k < bins && k < start + fe->block; k++) {
            float *values = (float *)(power + k);
            for (Py_ssize_t lane = 0; lane < LANES; lane++)
                values[lane] = sqrtf(values[lane]);
            sum += power[k];
            weighted += power[k] * (float)k;
        }
        running[number] = running[number - 1] + sum;
    }
    lanes total = running[number - 1];
    for (Py_ssize_t lane = 0; lane < count; lane++) {
        out->centroid[first + lane] = weighted[lane] / (total[lane] > SMALLEST ? total[lane] : SMALLEST);
        FN(find_rolloff)(fe, (const float *)power, (const float *)running, out, first + lane, lane);
    }
}

/* 10 log10 of a normal number: its exponent, and of the rest, between 0.7 and 1.4, the logarithm's series
(M. Abramowitz, I. A. Stegun, Handbook of Mathematical Functions, 1964, 4.1.27), whose next term is below 1e-9. Infinity becomes 385 dB. */
INLINE float FN(decibel)(float power)
{
    union { float value; int32_t bits; } rest = {power};
    int32_t exponent = (rest.bits - 0x3f3504f3) >> 23; /* as if the root of a half were 1 */
    rest.bits -= exponent * (1 << 23);
    float s = (rest.value - 1.0f) / (rest.value + 1.0f), square = s * s;
    float series = 1.0f + square * (1.0f / 3 + square * (1.0f / 5 + square * (1.0f / 7 + square / 9)));
    return 3.01029996f * (float)exponent + 8.68588964f * s * series;
}

/* Turn the mel bands into dB, not below their floor, which is returned. */
static float FN(to_decibels)(float *mel, Py_ssize_t values, float top_db)
{
    float top[LANES], floor_db = LOWEST_DB;
    for (Py_ssize_t lane = 0; lane < LANES; lane++)
        top[lane] = LOWEST_DB;
    for (Py_ssize_t place = 0; place < values; place++)
        mel[place] = FN(decibel)(mel[place] > LOWEST_POWER ? mel[place] : LOWEST_POWER);
    for (Py_ssize_t first = 0; first < values; first += LANES)
        for (Py_ssize_t lane = 0; lane < LANES && first + lane < values; lane++)
            top[lane] = mel[first + lane] > top[lane] ? mel[first + lane] : top[lane];
    for (Py_ssize_t lane = 0; lane < LANES; lane++)
        floor_db = top[lane] - top_db > floor_db ? top[lane] - top_db : floor_db;
    for (Py_ssize_t place = 0; place < values; place++)
        mel[place] = mel[place] > floor_db ? mel[place] : floor_db;
    return floor_db;
}

/* Find the frames in which a band lies so far below the mean power that the transform's rounding errors count. */
static void FN(find_noisy)(const tensor *to, const float *mel, const float *mean_power, Py_ssize_t frames, float *lowest,
                           uint8_t *noisy)
{
    for (Py_ssize_t frame = 0; frame < frames; frame++)
        lowest[frame] = INFINITY;
    for (Py_ssize_t band = 0; band < to->n_mels; band++, mel += frames)
        for (Py_ssize_t frame = 0; frame < frames; frame++) {
            float above = mel[frame] - to->noise_db[band];
            lowest[frame] = above < lowest[frame] ? above : lowest[frame];
        }
    for (Py_ssize_t frame = 0; frame < frames; frame++)
        noisy[frame] = lowest[frame] < FN(decibel)(mean_power[frame] + LOWEST_POWER);
}

/* Add up the cosine transform of one vector of frames, in double precision, for ROWS of its rows. */
INLINE void FN(cosine_rows)(const tensor *to, const wide_lanes *bands, Py_ssize_t first, wide_lanes *low, wide_lanes *high)
{
    const double *weights[ROWS];
    for (Py_ssize_t row = 0; row < ROWS; row++) /* of rows past the last, the last once more */
        weights[row] = to->dct + (first + row < to->n_mfcc ? first + row : to->n_mfcc - 1) * to->n_mels;
    for (Py_ssize_t band = 0; band < to->n_mels; band++)
        for (Py_ssize_t row = 0; row < ROWS; row++) {
            low[row] += bands[2 * band] * weights[row][band];
            high[row] += bands[2 * band + 1] * weights[row][band];
        }
}

/* Write the cosine transform of up to LANES frames. */
static void FN(cosines)(const tensor *to, const float *mel, Py_ssize_t frames, Py_ssize_t count, float floor_db,
                        double *bands, float *out)
{
    for (Py_ssize_t band = 0; band < to->n_mels; band++)
        for (Py_ssize_t lane = 0; lane < LANES; lane++)
            bands[band * LANES + lane] = lane < count ? mel[band * frames + lane] - floor_db : 0.0f;
    for (Py_ssize_t first = 0; first < to->n_mfcc; first += ROWS) {
        wide_lanes low[ROWS] = {{0}}, high[ROWS] = {{0}};
        FN(cosine_rows)(to, (const wide_lanes *)bands, first, low, high);
        for (Py_ssize_t row = 0; row < ROWS && first + row < to->n_mfcc; row++)
            for (Py_ssize_t lane = 0; lane < count; lane++)
                out[(first + row) * to->frames + lane] =
                    (float)(lane < LANES / 2 ? low[row][lane] : high[row][lane - LANES / 2]);
    }
}

/* Write the mel bands of all frames, and behind them what the padding is. */
static void FN(write_bands)(const tensor *to, const float *mel, Py_ssize_t frames, float floor_db, float *out)
{
    for (Py_ssize_t band = 0; band < to->n_mels; band++, mel += frames, out += to->frames)
        for (Py_ssize_t frame = 0; frame < to->frames; frame++)
            out[frame] = frame < frames ? mel[frame] : floor_db;
}

/* Write the cosine transform of all frames: of what lies above the floor, which is added in the end, so that a silent
frame is exactly what the padding is. */
static void FN(write_cosines)(const tensor *to, const float *mel, Py_ssize_t frames, float floor_db, double *scratch,
                              float *out)
{
    for (Py_ssize_t first = 0; first < frames; first += LANES) {
        Py_ssize_t count = frames - first < LANES ? frames - first : LANES;
        FN(cosines)(to, mel + first, frames, count, floor_db, scratch, out + first);
    }
    for (Py_ssize_t row = 0; row < to->n_mfcc; row++)
        for (Py_ssize_t frame = frames; frame < to->frames; frame++)
            out[row * to->frames + frame] = 0.0f;
    for (Py_ssize_t frame = 0; frame < to->frames; frame++)
        out[frame] += floor_db * sqrtf((float)to->n_mels);
}

/* Write the features of `frames` frames, and of the padding behind them; return the floor. */
static float FN(finish)(const tensor *to, float *mel, const float *mean_power, Py_ssize_t frames, double *scratch,
                        uint8_t *noisy, float *out)
{
    float floor_db = FN(to_decibels)(mel, to->n_mels * frames, to->top_db);
    FN(find_noisy)(to, mel, mean_power, frames, (float *)scratch, noisy);
    if (to->n_mfcc)
        FN(write_cosines)(to, mel, frames, floor_db, scratch, out);
    else
        FN(write_bands)(to, mel, frames, floor_db, out);
    return floor_db;
}

static void FN(analyse)(const front_end *fe, const float *samples, Py_ssize_t count, figures *out, float *scratch,
                        int with_statistics)
{
    Py_ssize_t steps = out->frames + (fe->n_fft + fe->hop_length - 1) / fe->hop_length;
    Py_ssize_t stride = steps + LANES;
    complex_lanes *z = (complex_lanes *)scratch, *other = z + fe->n_fft / 2;
    float *rows = (float *)(other + fe->n_fft / 2);
    FN(transpose)(samples, count, fe->hop_length, steps, rows, stride);
    for (Py_ssize_t first = 0; first < out->frames; first += LANES) {
        Py_ssize_t some = out->frames - first < LANES ? out->frames - first : LANES;
        FN(load)(fe, rows, stride, first, z);
        complex_lanes *result = FN(transform)(z, other, fe->n_fft / 2, fe->twiddles, fe->n_fft);
        lanes *power = (lanes *)(result == z ? other : z);
        FN(powers)(fe, result, power);
        FN(mel_bands)(fe, power, out, first, some);
        if (with_statistics)
            FN(statistics)(fe, power, (lanes *)result, out, first, some);
    }
}

#undef lanes
#undef wide_lanes
#undef complex_lanes
