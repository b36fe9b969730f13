// The inserted stream of consecutive layers (docs/method.md, "The stream"): rows z
// [batch * tokens, D] in place, and v, their norm after the last layer.
// norm: own, a gated FFN with SiLU. Weights are [outputs, inputs]. StreamCall names two dtypes, of
// what is read of the base and of all else. Every sum is in single precision, and so is the stream
// within a call: it is rounded to its dtype once, at the end.
// native_library.py repeats the structures; otter_abi lets it compare their sizes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "numbers.h"

namespace {

enum Mask : int64_t { MASK_NONE, MASK_CAUSAL, MASK_ADDITIVE, MASK_BOOLEAN };

// Keys and values of the base in a paged cache; each row belongs to a sequence. A block holds, for
// each head, keys [head_dim, size] and then values [size, head_dim]. Half: as bfloat16 in pairs,
// keys [size / LANES, head_dim / 2, LANES, 2] and values [head_dim / LANES, size / 2, LANES, 2].
struct PagedCache {
  int64_t size, half;  // slots of a block, a multiple of LANES
  int64_t of_block, of_head, of_sequence;  // strides in the caches, and in the table
  const int32_t *table;                    // [sequences, ...] blocks
  const int64_t *sequence, *seen;          // of each row: its sequence, and how many slots it sees
};

// The sizes of one insertion, and of one call.
struct StreamCall {
  int64_t batch, tokens, layers, hidden;
  int64_t in_heads, in_out, in_units, in_down;  // widths of the base's activations
  int64_t heads, kv_heads, head_dim, units;
  int64_t own_kv, slots, first_slot;  // new keys and values are written from first_slot on
  int64_t mask, mask_of_batch, mask_of_token, turn_of_batch;
  // Dtypes: of heads_h, out_h, units_h, down_h and the base's activations; and of all other tensors.
  int64_t base_dtype, own_dtype;
  double eps, scale;
  const PagedCache *pages;  // null: LayerInputs have the addresses of keys and values
};

// Pointers of a layer; null where there is no such tensor.
template <typename Own>
struct LayerWeights {
  const Own *norm, *norm_bias;
  const void *heads_h;
  const Own *heads_z, *heads_bias, *query_norm, *key_norm;
  const void *out_h;
  const Own *out_z, *out_bias, *units_norm, *units_norm_bias;
  const void *units_h;
  const Own *units_z, *units_bias;
  const void *down_h;
  const Own *down_z, *down_bias;
};

// The base's activations of a layer; keys and values are the insertion's own, or the base's.
template <typename Own>
struct LayerInputs {
  const void *normed, *attended, *ffn_normed, *activated;
  Own *key, *value;
  int64_t key_of[3], value_of[3];  // strides of batch, head and slot
  const Own *cos, *sin;
  const void *mask;
};

// The part `x W^h` of a layer's four products.
struct BaseParts {
  float *heads, *out, *units, *down;
};

// out[x][w] (+)= x . w, of X rows and W weights, and prefetches F of the next weights: a row is too
// short for the processor's own prefetcher.
template <int W, int X, int F, typename Row, typename Number>
void tile(const Row *x, const Number *w, const Number *next, int64_t width, float *out,
          int64_t stride, bool add) {
  typedef Dot<Row, Number> Dot;
  constexpr int64_t STEP = Dot::STEP;
  Lanes sums[W][X] = {};
  int64_t i = 0;
  for (; i + STEP <= width; i += STEP) {
    typename Dot::Many rows[X];
    for (int r = 0; r < X; ++r) rows[r] = Dot::load(x + r * width + i);
    for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * width + i);
    for (int o = 0; o < W; ++o) {
      const auto weight = Dot::load(w + o * width + i);
      for (int r = 0; r < X; ++r) sums[o][r] = Dot::plus(sums[o][r], weight, rows[r]);
    }
  }
  float found[X][W];
#pragma GCC unroll 8
  for (int r = 0; r < X; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < W; ++o) found[r][o] = total(sums[o][r]);
  for (; i < width; ++i)
    for (int r = 0; r < X; ++r)
      for (int o = 0; o < W; ++o)
        found[r][o] += widened(w[o * width + i]) * widened(x[r * width + i]);
  for (int r = 0; r < X; ++r)
    for (int o = 0; o < W; ++o)
      out[r * stride + o] = add ? out[r * stride + o] + found[r][o] : found[r][o];
}

// `tile` of `rows` rows, at most X.
template <int W, int X, int F, typename... Given>
void tile_of(int64_t rows, Given... given) {
  if (rows == X)
    tile<W, X, F>(given...);
  else if constexpr (X > 1)
    tile_of<W, X - 1, F>(rows, given...);
}

// All rows, in groups of up to five and of about the same size. Of many rows, each group prefetches
// a share; of few, each prefetches everything, unless there is too little work meanwhile.
template <int W, typename Row, typename Number>
void weights(const Row *x, int64_t rows, const Number *w, int64_t width, float *out,
             int64_t stride, bool add) {
  const Number *next = w + W * width, *last = next + (W - 1) * width;
  const int64_t times = (rows + 4) / 5;
  const bool all = rows == 1 || (rows >= 5 && times < 3);
  for (int64_t time = 0, r = 0; time < times; ++time) {
    const int64_t now = (rows - r + times - time - 1) / (times - time);
    const Row *here = x + r * width;
    const Number *ahead = std::min(next + time * width, last);
    float *to = out + r * stride;
    if (all)
      tile_of<W, 5, W>(now, here, w, next, width, to, stride, add);
    else
      tile_of<W, 5, 1>(now, here, w, ahead, width, to, stride, add);
    r += now;
  }
}

// out [rows, stride] (+)= x W^T for the outputs from `from` to `to`.
template <typename Row, typename Number>
void product(const Row *x, int64_t rows, const Number *w, int64_t width, int64_t from, int64_t to,
             float *out, int64_t stride, bool add) {
  int64_t o = from;
  for (; o + 4 <= to; o += 4)
    weights<4>(x, rows, w + o * width, width, out + o, stride, add);
  for (; o < to; ++o) weights<1>(x, rows, w + o * width, width, out + o, stride, add);
}

template <typename Number>
void plus(float *row, const Number *other, int64_t width) {
  if (other)
    for (int64_t i = 0; i < width; ++i) row[i] += widened(other[i]);
}

// x / rms(x) * g (+ b)
template <typename Own>
void normed(const float *x, int64_t width, double eps, const Own *g, const Own *b, float *out) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += double(x[i]) * x[i];
  const float scale = float(1 / std::sqrt(squares / width + eps));
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * widened(g[i]);
  plus(out, b, width);
}

// x cos + (-x2, x1) sin, of the halves x1 and x2.
template <typename Own>
void turn(float *x, const Own *cos, const Own *sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float one = x[i], two = x[half + i];
    x[i] = one * widened(cos[i]) - two * widened(sin[i]);
    x[half + i] = two * widened(cos[half + i]) + one * widened(sin[half + i]);
  }
}

template <typename Own>
void store(const float *row, int64_t width, Own *to) {
  for (int64_t i = 0; i < width; ++i) round_to(row[i], to[i]);
}

// One call's buffers, kept by the thread for the next.
float *room(std::vector<float> &kept, int64_t size) {
  if (int64_t(kept.size()) < size) kept.resize(size);
  return kept.data();
}

// `Own`: the dtype of the insertion. z is in single precision.
template <typename Own>
struct Stream {
  typedef LayerWeights<Own> Weights;
  typedef LayerInputs<Own> Inputs;
  const StreamCall &call;
  float *z;

  int64_t rows() const { return call.batch * call.tokens; }
  int64_t kept_heads() const { return call.own_kv ? call.kv_heads : 0; }
  int64_t head_outputs() const { return (call.heads + 2 * kept_heads()) * call.head_dim; }

  // The row's queries, keys and values: normed, rotated, keys and values written to the cache.
  void project_heads(const Weights &w, const Inputs &inputs, const BaseParts &made,
                     int64_t row) const {
    const int64_t c = call.head_dim, b = row / call.tokens, t = row % call.tokens;
    float *qkv = made.heads + row * head_outputs();
    enter(z + row * call.hidden, w.norm, w.norm_bias, w.heads_z, w.heads_bias, head_outputs(),
          qkv);
    const int64_t at = b * call.turn_of_batch + t * c;
    for (int64_t head = 0; head < call.heads + kept_heads(); ++head) {
      float *one = qkv + head * c;
      if (const Own *g = head < call.heads ? w.query_norm : w.key_norm)
        normed(one, c, call.eps, g, static_cast<const Own *>(nullptr), one);
      if (inputs.cos) turn(one, inputs.cos + at, inputs.sin + at, c);
    }
    const float *keys = qkv + call.heads * c, *values = keys + kept_heads() * c;
    for (int64_t head = 0; head < kept_heads(); ++head) {
      store(keys + head * c, c, slot(inputs.key, inputs.key_of, b, head, call.first_slot + t));
      store(values + head * c, c, slot(inputs.value, inputs.value_of, b, head, call.first_slot + t));
    }
  }

  // The rest of the layer: attention, output product, FFN.
  void finish_layer(const Weights &w, const Inputs &inputs, const BaseParts &made,
                    int64_t row) const {
    static thread_local std::vector<float> kept;
    const int64_t attended = call.heads * call.head_dim;
    float *own = room(kept, std::max(attended, call.units) + call.slots + LANES);
    float *here = z + row * call.hidden;
    for (int64_t head = 0; head < call.heads; ++head)
      attend(inputs, made.heads + row * head_outputs() + head * call.head_dim, row, head,
             own + head * call.head_dim, own + std::max(attended, call.units));
    plus(here, made.out + row * call.hidden, call.hidden);
    if (call.heads) product(own, 1, w.out_z, attended, 0, call.hidden, here, call.hidden, true);
    plus(here, w.out_bias, call.hidden);
    if (call.units) {
      float *gate = made.units + row * 2 * call.units;
      enter(here, w.units_norm, w.units_norm_bias, w.units_z, w.units_bias, 2 * call.units, gate);
      const float *up = gate + call.units;
      for (int64_t i = 0; i < call.units; ++i)
        own[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
    }
    plus(here, made.down + row * call.hidden, call.hidden);
    if (call.units) product(own, 1, w.down_z, call.units, 0, call.hidden, here, call.hidden, true);
    plus(here, w.down_bias, call.hidden);
  }

 private:
  static Own *slot(Own *first, const int64_t *of, int64_t batch, int64_t head, int64_t at) {
    return first + batch * of[0] + head * of[1] + at * of[2];
  }

  // out += u W^z (+ b), u = norm(x)
  void enter(const float *x, const Own *g, const Own *g_bias, const Own *w, const Own *bias,
             int64_t outputs, float *out) const {
    static thread_local std::vector<float> kept;
    float *u = room(kept, call.hidden);
    normed(x, call.hidden, call.eps, g, g_bias, u);
    product(u, 1, w, call.hidden, 0, outputs, out, outputs, true);
    plus(out, bias, outputs);
  }

  // Masked slots are left out whatever they hold, NaN included.
  bool sees(const Inputs &inputs, int64_t b, int64_t t, int64_t at, float &score) const {
    const int64_t place = b * call.mask_of_batch + t * call.mask_of_token + at;
    switch (call.mask) {
      case MASK_CAUSAL: return true;  // `visible` ends at the row's own slot
      case MASK_ADDITIVE: score += widened(static_cast<const Own *>(inputs.mask)[place]); return true;
      case MASK_BOOLEAN: return static_cast<const uint8_t *>(inputs.mask)[place];
      default: return true;
    }
  }

  // The row's block that begins with slot `at`: the keys of a head, then its values.
  const char *page(const Inputs &inputs, int64_t row, int64_t kv, int64_t at) const {
    const PagedCache &pages = *call.pages;
    const int64_t block = pages.table[pages.sequence[row] * pages.of_sequence + at / pages.size];
    return reinterpret_cast<const char *>(inputs.key) +
           (block * pages.of_block + kv * pages.of_head) * (pages.half ? 2 : 4);
  }

  // scores[at...] = query . key, of N vectors of slots: keys are stored number by number.
  template <typename Number, int N>
  void score(const char *keys, const float *query, int64_t at, float *scores) const {
    const int64_t size = call.pages->size, c = call.head_dim;
    Lanes sums[N] = {};
    for (int64_t i = 0; i < c; i += 2)
      for (int n = 0; n < N; ++n)
        if constexpr (std::is_same_v<Number, BFloat16>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(keys) + (at / LANES + n) * (c / 2);
          const Pairs both = load<Pairs>(pairs + i / 2);
          sums[n] += query[i] * firsts(both) + query[i + 1] * seconds(both);
        } else {
          const float *here = reinterpret_cast<const float *>(keys) + at + n * LANES + i * size;
          sums[n] += query[i] * lanes(here) + query[i + 1] * lanes(here + size);
        }
    std::memcpy(scores + at, sums, sizeof sums);
  }

  // out[i...] += weight * value, of N vectors of a value's numbers, over a block's first slots.
  template <typename Number, int N>
  void mix(const char *values, const float *weights, int64_t slots, int64_t i, float *out) const {
    const int64_t size = call.pages->size, c = call.head_dim;
    Lanes sums[N];
    std::memcpy(sums, out + i, sizeof sums);
    for (int64_t at = 0; at < slots; ++at)
      for (int n = 0; n < N; ++n)
        if constexpr (std::is_same_v<Number, BFloat16>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(values);
          const Pairs both = load<Pairs>(pairs + (i / LANES + n) * (size / 2) + at / 2);
          sums[n] += weights[at] * (at % 2 ? seconds(both) : firsts(both));
        } else {
          const float *value = reinterpret_cast<const float *>(values) + at * c;
          sums[n] += weights[at] * lanes(value + i + n * LANES);
        }
    std::memcpy(out + i, sums, sizeof sums);
  }

  // Whole vectors of slots at a time. Scores behind the last slot that is seen are unused.
  template <typename Number>
  void score_pages(const Inputs &inputs, const float *query, int64_t row, int64_t kv,
                   int64_t slots, float *scores) const {
    const int64_t size = call.pages->size;
    for (int64_t first = 0; first < slots; first += size, scores += size) {
      const char *keys = page(inputs, row, kv, first);
      const int64_t seen = std::min(slots - first, size);
      int64_t at = 0;
      for (; at + 3 * LANES < seen; at += 4 * LANES) score<Number, 4>(keys, query, at, scores);
      if (at + 2 * LANES < seen)
        score<Number, 3>(keys, query, at, scores);
      else if (at + LANES < seen)
        score<Number, 2>(keys, query, at, scores);
      else if (at < seen)
        score<Number, 1>(keys, query, at, scores);
    }
  }

  template <typename Number>
  void mix_pages(const Inputs &inputs, const float *weights, int64_t row, int64_t kv,
                 int64_t slots, float *out) const {
    const int64_t size = call.pages->size, c = call.head_dim;
    for (int64_t first = 0; first < slots; first += size, weights += size) {
      const char *values = page(inputs, row, kv, first) + size * c * sizeof(Number);
      const int64_t seen = std::min(slots - first, size);
      int64_t i = 0;
      for (; i + 8 * LANES <= c; i += 8 * LANES) mix<Number, 8>(values, weights, seen, i, out);
      for (; i + 4 * LANES <= c; i += 4 * LANES) mix<Number, 4>(values, weights, seen, i, out);
      for (; i < c; i += LANES) mix<Number, 1>(values, weights, seen, i, out);
    }
  }

  void score_slots(const Inputs &inputs, const float *query, int64_t b, int64_t kv, int64_t slots,
                   float *scores) const {
    const int64_t c = call.head_dim;
    if (inputs.key_of[2] == c)
      product(query, 1, slot(inputs.key, inputs.key_of, b, kv, 0), c, 0, slots, scores, 1, false);
    else
      for (int64_t at = 0; at < slots; ++at)
        product(query, 1, slot(inputs.key, inputs.key_of, b, kv, at), c, 0, 1, scores + at, 1,
                false);
  }

  // out[i...] = weights . values, of N vectors of a value's numbers. A slot of no weight is left
  // out: what is not written yet may be no number.
  template <int N>
  void mix_numbers(const Inputs &inputs, const float *weights, int64_t b, int64_t kv, int64_t slots,
                   int64_t i, float *out) const {
    const Own *value = slot(inputs.value, inputs.value_of, b, kv, 0) + i;
    Lanes sums[N] = {};
    for (int64_t at = 0; at < slots; ++at, value += inputs.value_of[2])
      if (weights[at] != 0)
        for (int n = 0; n < N; ++n) sums[n] += weights[at] * lanes(value + n * LANES);
    std::memcpy(out + i, sums, sizeof sums);
  }

  void mix_slots(const Inputs &inputs, const float *weights, int64_t b, int64_t kv, int64_t slots,
                 float *out) const {
    const int64_t c = call.head_dim;
    int64_t i = 0;
    for (; i + 4 * LANES <= c; i += 4 * LANES)
      mix_numbers<4>(inputs, weights, b, kv, slots, i, out);
    for (; i + LANES <= c; i += LANES) mix_numbers<1>(inputs, weights, b, kv, slots, i, out);
    for (; i < c; ++i)
      for (int64_t at = 0; at < slots; ++at)
        if (weights[at] != 0)
          out[i] += weights[at] * widened(slot(inputs.value, inputs.value_of, b, kv, at)[i]);
  }

  // How many slots of the cache the row may see: what is behind them is not computed.
  int64_t visible(int64_t row, int64_t t) const {
    if (call.pages) return call.pages->seen[row];
    return call.mask == MASK_CAUSAL ? call.first_slot + t + 1 : call.slots;
  }

  void attend(const Inputs &inputs, const float *query, int64_t row, int64_t head, float *out,
              float *weights) const {
    const int64_t c = call.head_dim, b = row / call.tokens, t = row % call.tokens;
    const int64_t kv = head / (call.heads / call.kv_heads);
    const int64_t slots = visible(row, t);
    const bool half = call.pages && call.pages->half;
    if (half)
      score_pages<BFloat16>(inputs, query, row, kv, slots, weights);
    else if (call.pages)
      score_pages<float>(inputs, query, row, kv, slots, weights);
    else
      score_slots(inputs, query, b, kv, slots, weights);
    float largest = -INFINITY;
    for (int64_t at = 0; at < slots; ++at) {
      float score = weights[at] * float(call.scale);
      weights[at] = sees(inputs, b, t, at, score) ? score : -INFINITY;
      largest = std::max(largest, weights[at]);
    }
    std::fill(out, out + c, 0.0f);
    float sum = 0;
    for (int64_t at = 0; at < slots; ++at) {
      const bool seen = weights[at] != -INFINITY;
      sum += weights[at] = seen ? std::exp(weights[at] - largest) : 0;
    }
    if (half)
      mix_pages<BFloat16>(inputs, weights, row, kv, slots, out);
    else if (call.pages)
      mix_pages<float>(inputs, weights, row, kv, slots, out);
    else
      mix_slots(inputs, weights, b, kv, slots, out);
    if (sum != 0)
      for (int64_t i = 0; i < c; ++i) out[i] /= sum;
  }
};

// Some outputs of a product with the base: the work that a thread takes at a time.
struct Piece {
  int64_t layer;
  const void *x, *w;
  int64_t first, rows, width, from, to;  // rows from the first on, outputs `from` up to `to`
  float *out;
  int64_t stride;
  int64_t dtype;

  void run() const {
    switch (dtype) {
      case BFLOAT16: return of<BFloat16>();
      case FLOAT16: return of<Float16>();
      default: return of<float>();
    }
  }

 private:
  template <typename Number>
  void of() const {
    const Number *here = static_cast<const Number *>(x) + first * width;
    product(here, rows, static_cast<const Number *>(w), width, from, to, out + first * stride,
            stride, false);
  }
};

// ROWS: as many rows of the base as stay in cache from one output to the next.
constexpr int64_t PIECE = 32, ROWS = 64;

void cut(std::vector<Piece> &pieces, int64_t layer, const void *x, int64_t rows, const void *w,
         int64_t width, int64_t outputs, float *out, int64_t dtype) {
  for (int64_t row = 0; row < rows; row += ROWS)
    for (int64_t from = 0; from < outputs; from += PIECE)
      pieces.push_back({layer, x, w, row, std::min(ROWS, rows - row), width, from,
                        std::min(outputs, from + PIECE), out, outputs, dtype});
}

// All pieces first, then layer by layer with the rows in parallel.
template <typename Own>
void many_rows(const Stream<Own> &stream, const LayerWeights<Own> *weights,
               const LayerInputs<Own> *inputs,
               const std::vector<BaseParts> &layers, const std::vector<Piece> &pieces) {
  const int64_t rows = stream.rows(), count = pieces.size();
  const Piece *all = pieces.data();
#pragma omp parallel
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < count; ++i) all[i].run();
    for (size_t l = 0; l < layers.size(); ++l) {
      if (stream.call.heads) {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; ++row)
          stream.project_heads(weights[l], inputs[l], layers[l], row);
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; ++row)
        stream.finish_layer(weights[l], inputs[l], layers[l], row);
    }
  }
}

// One thread takes the row through its layers, each as soon as its pieces are done. The other
// threads run the pieces of later layers meanwhile.
template <typename Own>
void one_row(const Stream<Own> &stream, const LayerWeights<Own> *weights,
             const LayerInputs<Own> *inputs,
             const std::vector<BaseParts> &layers, const std::vector<Piece> &pieces) {
  const int64_t count = pieces.size();
  std::vector<std::atomic<int64_t>> left(layers.size());
  for (const Piece &piece : pieces) ++left[piece.layer];
  std::atomic<int64_t> next{0};
  const auto one_more = [&] {
    const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
    if (i >= count) return false;
    pieces[i].run();
    left[pieces[i].layer].fetch_sub(1, std::memory_order_release);
    return true;
  };
#pragma omp parallel
  {
#pragma omp master
    for (size_t l = 0; l < layers.size(); ++l) {
      while (left[l].load(std::memory_order_acquire)) one_more();
      if (stream.call.heads) stream.project_heads(weights[l], inputs[l], layers[l], 0);
      stream.finish_layer(weights[l], inputs[l], layers[l], 0);
    }
    while (one_more()) {}
  }
}

// After the last layer of all, `weights` has one more entry: the final norm. Otherwise v is null.
template <typename Own>
void run(const StreamCall &call, const LayerWeights<Own> *weights, const LayerInputs<Own> *inputs,
         Own *z, Own *v) {
  static thread_local std::vector<float> kept;
  static thread_local std::vector<Piece> pieces;
  const int64_t rows = call.batch * call.tokens, hidden = call.hidden, units = 2 * call.units;
  Stream<Own> stream{call, nullptr};
  const int64_t heads = call.heads ? stream.head_outputs() : 0;
  const int64_t of_layer = rows * (heads + units + 2 * hidden);
  stream.z = room(kept, call.layers * of_layer + (rows + 1) * hidden);
  for (int64_t i = 0; i < rows * hidden; ++i) stream.z[i] = widened(z[i]);
  float *normed_row = stream.z + rows * hidden, *made = normed_row + hidden;
  std::vector<BaseParts> layers(call.layers);
  pieces.clear();
  for (int64_t l = 0; l < call.layers; ++l) {
    float *first = made + l * of_layer;
    layers[l] = {first, first + rows * heads, first + rows * (heads + hidden),
                 first + rows * (heads + hidden + units)};
    const LayerWeights<Own> &w = weights[l];
    const BaseParts &to = layers[l];
    const auto add = [&](const void *x, const void *w, int64_t width, int64_t outs, float *out) {
      cut(pieces, l, x, rows, w, width, outs, out, call.base_dtype);
    };
    add(inputs[l].normed, w.heads_h, call.in_heads, heads, to.heads);
    add(inputs[l].attended, w.out_h, call.in_out, hidden, to.out);
    add(inputs[l].ffn_normed, w.units_h, call.in_units, units, to.units);
    add(inputs[l].activated, w.down_h, call.in_down, hidden, to.down);
  }
  if (rows == 1)
    one_row(stream, weights, inputs, layers, pieces);
  else
    many_rows(stream, weights, inputs, layers, pieces);
  store(stream.z, rows * hidden, z);
  if (!v) return;
  const LayerWeights<Own> &last = weights[call.layers];
  for (int64_t row = 0; row < rows; ++row) {
    normed(stream.z + row * hidden, hidden, call.eps, last.norm, last.norm_bias, normed_row);
    store(normed_row, hidden, v + row * hidden);
  }
}

template <typename Own>
void run(const StreamCall &call, const void *weights, const void *inputs, void *z, void *v) {
  run(call, static_cast<const LayerWeights<Own> *>(weights),
      static_cast<const LayerInputs<Own> *>(inputs), static_cast<Own *>(z), static_cast<Own *>(v));
}

}  // namespace

// Fills [version, sizes of the structures in bytes]; raise the version when their meaning changes.
extern "C" void otter_abi(int64_t *numbers) {
  numbers[0] = 2;
  numbers[1] = sizeof(StreamCall);
  numbers[2] = sizeof(LayerWeights<float>);
  numbers[3] = sizeof(LayerInputs<float>);
  numbers[4] = sizeof(PagedCache);
}

// Whether this library multiplies bfloat16 by the processor's own dot products.
extern "C" int otter_bfloat16() {
#ifdef __AVX512BF16__
  return 1;
#else
  return 0;
#endif
}

// z [batch * tokens, D] in place, and v in the dtype `own_dtype`.
extern "C" void otter_stream(const StreamCall *call, const void *weights, const void *inputs,
                             void *z, void *v) {
  switch (call->own_dtype) {
    case BFLOAT16: return run<BFloat16>(*call, weights, inputs, z, v);
    case FLOAT16: return run<Float16>(*call, weights, inputs, z, v);
    default: return run<float>(*call, weights, inputs, z, v);
  }
}
