// The inserted stream of consecutive layers (docs/method.md, "The stream"): rows z
// [batch * tokens, D] in place, and v, their norm after the last layer.
// Single precision, norm: own, a gated FFN with SiLU. Weights are [outputs, inputs]. The base's
// activations, and the weights that read them, are bfloat16 where StreamCall.half says so.
// native_library.py repeats the structures; otter_abi lets it compare their sizes.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace {

constexpr int64_t LANES = 16;
typedef float Lanes __attribute__((vector_size(LANES * sizeof(float))));
typedef uint16_t Half;
typedef uint32_t Pairs __attribute__((vector_size(LANES * sizeof(uint32_t))));
typedef float Eight __attribute__((vector_size(8 * sizeof(float))));
typedef float Four __attribute__((vector_size(4 * sizeof(float))));

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
  int64_t half;  // dtype of heads_h, out_h, units_h, down_h, and of the base's activations
  double eps, scale;
  const PagedCache *pages;  // null: LayerInputs have the addresses of keys and values
};

// Pointers of a layer; null where there is no such tensor.
struct LayerWeights {
  const float *norm, *norm_bias, *heads_h, *heads_z, *heads_bias, *query_norm, *key_norm;
  const float *out_h, *out_z, *out_bias;
  const float *units_norm, *units_norm_bias, *units_h, *units_z, *units_bias;
  const float *down_h, *down_z, *down_bias;
};

// The base's activations of a layer; keys and values are the insertion's own, or the base's.
struct LayerInputs {
  const void *normed, *attended, *ffn_normed, *activated;
  float *key, *value;
  int64_t key_of[3], value_of[3];  // strides of batch, head and slot
  const float *cos, *sin;
  const void *mask;
};

// The part `x W^h` of a layer's four products.
struct BaseParts {
  float *heads, *out, *units, *down;
};

template <typename Many = Lanes>
inline Many load(const void *at) {
  Many lanes;
  std::memcpy(&lanes, at, sizeof lanes);
  return lanes;
}

// The first numbers of pairs of bfloat16, and the second ones.
inline Lanes firsts(const Pairs &pairs) { return (Lanes)(pairs << 16); }
inline Lanes seconds(const Pairs &pairs) { return (Lanes)(pairs & 0xffff0000u); }

// A vector register of consecutive numbers.
template <typename Number>
using Wide = std::conditional_t<std::is_same_v<Number, Half>, Pairs, Lanes>;

inline Lanes plus_products(const Lanes &sum, const Lanes &one, const Lanes &other) {
  return sum + one * other;
}
inline Lanes plus_products(const Lanes &sum, const Pairs &one, const Pairs &other) {
  return sum + firsts(one) * firsts(other) + seconds(one) * seconds(other);
}

inline float whole(float one) { return one; }
inline float whole(Half one) {
  const uint32_t bits = uint32_t(one) << 16;
  float same;
  std::memcpy(&same, &bits, sizeof same);
  return same;
}

// The sum of a vector's two halves. Shuffles keep it in registers; a detour over memory would take
// all sums of a tile with it.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define SHUFFLES
#endif
#endif
#ifdef SHUFFLES
inline Eight folded(Lanes x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
         __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
}
inline Four folded(Eight x) {
  return __builtin_shufflevector(x, x, 0, 1, 2, 3) + __builtin_shufflevector(x, x, 4, 5, 6, 7);
}
#else
template <typename Less, typename Whole>
inline Less halves(Whole whole) {
  Less low, high;
  std::memcpy(&low, &whole, sizeof low);
  std::memcpy(&high, reinterpret_cast<const char *>(&whole) + sizeof low, sizeof high);
  return low + high;
}
inline Eight folded(Lanes x) { return halves<Eight>(x); }
inline Four folded(Eight x) { return halves<Four>(x); }
#endif

inline float total(Lanes lanes) {
  const Four four = folded(folded(lanes));
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// out[x][w] (+)= x . w, of X rows and W weights, and prefetches F of the next weights: a row is too
// short for the processor's own prefetcher.
template <int W, int X, int F, typename Number>
void tile(const Number *x, const Number *w, const Number *next, int64_t width, float *out,
          int64_t stride, bool add) {
  constexpr int64_t STEP = sizeof(Wide<Number>) / sizeof(Number);
  Lanes sums[W][X] = {};
  int64_t i = 0;
  for (; i + STEP <= width; i += STEP) {
    Wide<Number> rows[X];
    for (int r = 0; r < X; ++r) rows[r] = load<Wide<Number>>(x + r * width + i);
    for (int f = 0; f < F; ++f) __builtin_prefetch(next + f * width + i);
    for (int o = 0; o < W; ++o) {
      const auto weight = load<Wide<Number>>(w + o * width + i);
      for (int r = 0; r < X; ++r) sums[o][r] = plus_products(sums[o][r], weight, rows[r]);
    }
  }
  float found[X][W];
#pragma GCC unroll 8
  for (int r = 0; r < X; ++r)
#pragma GCC unroll 8
    for (int o = 0; o < W; ++o) found[r][o] = total(sums[o][r]);
  for (; i < width; ++i)
    for (int r = 0; r < X; ++r)
      for (int o = 0; o < W; ++o) found[r][o] += whole(w[o * width + i]) * whole(x[r * width + i]);
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
template <int W, typename Number>
void weights(const Number *x, int64_t rows, const Number *w, int64_t width, float *out,
             int64_t stride, bool add) {
  const Number *next = w + W * width, *last = next + (W - 1) * width;
  const int64_t times = (rows + 4) / 5;
  const bool all = rows == 1 || (rows >= 5 && times < 3);
  for (int64_t time = 0, r = 0; time < times; ++time) {
    const int64_t now = (rows - r + times - time - 1) / (times - time);
    const Number *here = x + r * width, *ahead = std::min(next + time * width, last);
    float *to = out + r * stride;
    if (all)
      tile_of<W, 5, W>(now, here, w, next, width, to, stride, add);
    else
      tile_of<W, 5, 1>(now, here, w, ahead, width, to, stride, add);
    r += now;
  }
}

// out [rows, stride] (+)= x W^T for the outputs from `from` to `to`.
template <typename Number>
void product(const Number *x, int64_t rows, const Number *w, int64_t width, int64_t from,
             int64_t to, float *out, int64_t stride, bool add) {
  int64_t o = from;
  for (; o + 4 <= to; o += 4)
    weights<4>(x, rows, w + o * width, width, out + o, stride, add);
  for (; o < to; ++o) weights<1>(x, rows, w + o * width, width, out + o, stride, add);
}

void plus(float *row, const float *other, int64_t width) {
  if (other)
    for (int64_t i = 0; i < width; ++i) row[i] += other[i];
}

// x / rms(x) * g (+ b)
void normed(const float *x, int64_t width, double eps, const float *g, const float *b, float *out) {
  double squares = 0;
  for (int64_t i = 0; i < width; ++i) squares += double(x[i]) * x[i];
  const float scale = float(1 / std::sqrt(squares / width + eps));
  for (int64_t i = 0; i < width; ++i) out[i] = x[i] * scale * g[i];
  plus(out, b, width);
}

// x cos + (-x2, x1) sin, of the halves x1 and x2.
void turn(float *x, const float *cos, const float *sin, int64_t width) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float one = x[i], two = x[half + i];
    x[i] = one * cos[i] - two * sin[i];
    x[half + i] = two * cos[half + i] + one * sin[half + i];
  }
}

// One call's buffers, kept by the thread for the next.
float *room(std::vector<float> &kept, int64_t size) {
  if (int64_t(kept.size()) < size) kept.resize(size);
  return kept.data();
}

struct Stream {
  const StreamCall &call;
  float *z;

  int64_t rows() const { return call.batch * call.tokens; }
  int64_t kept_heads() const { return call.own_kv ? call.kv_heads : 0; }
  int64_t head_outputs() const { return (call.heads + 2 * kept_heads()) * call.head_dim; }

  // The row's queries, keys and values: normed, rotated, keys and values written to the cache.
  void project_heads(const LayerWeights &w, const LayerInputs &inputs, const BaseParts &made,
                     int64_t row) const {
    const int64_t c = call.head_dim, b = row / call.tokens, t = row % call.tokens;
    float *qkv = made.heads + row * head_outputs();
    enter(z + row * call.hidden, w.norm, w.norm_bias, w.heads_z, w.heads_bias, head_outputs(),
          qkv);
    const int64_t at = b * call.turn_of_batch + t * c;
    for (int64_t head = 0; head < call.heads + kept_heads(); ++head) {
      float *one = qkv + head * c;
      if (const float *g = head < call.heads ? w.query_norm : w.key_norm)
        normed(one, c, call.eps, g, nullptr, one);
      if (inputs.cos) turn(one, inputs.cos + at, inputs.sin + at, c);
    }
    const float *keys = qkv + call.heads * c, *values = keys + kept_heads() * c;
    for (int64_t head = 0; head < kept_heads(); ++head) {
      std::memcpy(slot(inputs.key, inputs.key_of, b, head, call.first_slot + t), keys + head * c,
                  c * sizeof(float));
      std::memcpy(slot(inputs.value, inputs.value_of, b, head, call.first_slot + t),
                  values + head * c, c * sizeof(float));
    }
  }

  // The rest of the layer: attention, output product, FFN.
  void finish_layer(const LayerWeights &w, const LayerInputs &inputs, const BaseParts &made,
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
  static float *slot(float *first, const int64_t *of, int64_t batch, int64_t head, int64_t at) {
    return first + batch * of[0] + head * of[1] + at * of[2];
  }

  // out += u W^z (+ b), u = norm(x)
  void enter(const float *x, const float *g, const float *g_bias, const float *w, const float *bias,
             int64_t outputs, float *out) const {
    static thread_local std::vector<float> kept;
    float *u = room(kept, call.hidden);
    normed(x, call.hidden, call.eps, g, g_bias, u);
    product(u, 1, w, call.hidden, 0, outputs, out, outputs, true);
    plus(out, bias, outputs);
  }

  // Masked slots are left out whatever they hold, NaN included.
  bool sees(const LayerInputs &inputs, int64_t b, int64_t t, int64_t at, float &score) const {
    const int64_t place = b * call.mask_of_batch + t * call.mask_of_token + at;
    switch (call.mask) {
      case MASK_CAUSAL: return at <= call.first_slot + t;
      case MASK_ADDITIVE: score += static_cast<const float *>(inputs.mask)[place]; return true;
      case MASK_BOOLEAN: return static_cast<const uint8_t *>(inputs.mask)[place];
      default: return true;
    }
  }

  // The row's block that begins with slot `at`: the keys of a head, then its values.
  const char *page(const LayerInputs &inputs, int64_t row, int64_t kv, int64_t at) const {
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
        if constexpr (std::is_same_v<Number, Half>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(keys) + (at / LANES + n) * (c / 2);
          const Pairs both = load<Pairs>(pairs + i / 2);
          sums[n] += query[i] * firsts(both) + query[i + 1] * seconds(both);
        } else {
          const float *here = reinterpret_cast<const float *>(keys) + at + n * LANES + i * size;
          sums[n] += query[i] * load(here) + query[i + 1] * load(here + size);
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
        if constexpr (std::is_same_v<Number, Half>) {
          const Pairs *pairs = reinterpret_cast<const Pairs *>(values);
          const Pairs both = load<Pairs>(pairs + (i / LANES + n) * (size / 2) + at / 2);
          sums[n] += weights[at] * (at % 2 ? seconds(both) : firsts(both));
        } else {
          const float *value = reinterpret_cast<const float *>(values) + at * c;
          sums[n] += weights[at] * load(value + i + n * LANES);
        }
    std::memcpy(out + i, sums, sizeof sums);
  }

  // Whole vectors of slots at a time. Scores behind the last slot that is seen are unused.
  template <typename Number>
  void score_pages(const LayerInputs &inputs, const float *query, int64_t row, int64_t kv,
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
  void mix_pages(const LayerInputs &inputs, const float *weights, int64_t row, int64_t kv,
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

  void score_slots(const LayerInputs &inputs, const float *query, int64_t b, int64_t kv,
                   float *scores) const {
    const int64_t c = call.head_dim;
    if (inputs.key_of[2] == c)
      product(query, 1, slot(inputs.key, inputs.key_of, b, kv, 0), c, 0, call.slots, scores, 1,
              false);
    else
      for (int64_t at = 0; at < call.slots; ++at)
        product(query, 1, slot(inputs.key, inputs.key_of, b, kv, at), c, 0, 1, scores + at, 1,
                false);
  }

  void mix_slots(const LayerInputs &inputs, const float *weights, int64_t b, int64_t kv,
                 float *out) const {
    for (int64_t at = 0; at < call.slots; ++at) {
      if (weights[at] == 0) continue;
      const float *value = slot(inputs.value, inputs.value_of, b, kv, at);
      for (int64_t i = 0; i < call.head_dim; ++i) out[i] += weights[at] * value[i];
    }
  }

  void attend(const LayerInputs &inputs, const float *query, int64_t row, int64_t head, float *out,
              float *weights) const {
    const int64_t c = call.head_dim, b = row / call.tokens, t = row % call.tokens;
    const int64_t kv = head / (call.heads / call.kv_heads);
    const int64_t slots = call.pages ? call.pages->seen[row] : call.slots;
    const bool half = call.pages && call.pages->half;
    if (half)
      score_pages<Half>(inputs, query, row, kv, slots, weights);
    else if (call.pages)
      score_pages<float>(inputs, query, row, kv, slots, weights);
    else
      score_slots(inputs, query, b, kv, weights);
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
      mix_pages<Half>(inputs, weights, row, kv, slots, out);
    else if (call.pages)
      mix_pages<float>(inputs, weights, row, kv, slots, out);
    else
      mix_slots(inputs, weights, b, kv, out);
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
  bool half;

  void run() const {
    if (half)
      of<Half>();
    else
      of<float>();
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
         int64_t width, int64_t outputs, float *out, bool half) {
  for (int64_t row = 0; row < rows; row += ROWS)
    for (int64_t from = 0; from < outputs; from += PIECE)
      pieces.push_back({layer, x, w, row, std::min(ROWS, rows - row), width, from,
                        std::min(outputs, from + PIECE), out, outputs, half});
}

// All pieces first, then layer by layer with the rows in parallel.
void many_rows(const Stream &stream, const LayerWeights *weights, const LayerInputs *inputs,
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
void one_row(const Stream &stream, const LayerWeights *weights, const LayerInputs *inputs,
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

}  // namespace

// Fills [version, sizes of the structures in bytes]; raise the version when their meaning changes.
extern "C" void otter_abi(int64_t *numbers) {
  numbers[0] = 1;
  numbers[1] = sizeof(StreamCall);
  numbers[2] = sizeof(LayerWeights);
  numbers[3] = sizeof(LayerInputs);
  numbers[4] = sizeof(PagedCache);
}

// After the last layer of all, `weights` has one more entry: the final norm. Otherwise v is null.
extern "C" void otter_stream(const StreamCall *call, const LayerWeights *weights,
                             const LayerInputs *inputs, float *z, float *v) {
  static thread_local std::vector<float> kept;
  static thread_local std::vector<Piece> pieces;
  const Stream stream{*call, z};
  const int64_t rows = stream.rows(), hidden = call->hidden, units = 2 * call->units;
  const int64_t heads = call->heads ? stream.head_outputs() : 0;
  const int64_t of_layer = rows * (heads + units + 2 * hidden);
  float *made = room(kept, call->layers * of_layer);
  std::vector<BaseParts> layers(call->layers);
  pieces.clear();
  for (int64_t l = 0; l < call->layers; ++l) {
    float *first = made + l * of_layer;
    layers[l] = {first, first + rows * heads, first + rows * (heads + hidden),
                 first + rows * (heads + hidden + units)};
    const LayerWeights &w = weights[l];
    const BaseParts &to = layers[l];
    const auto add = [&](const void *x, const void *w, int64_t width, int64_t outs, float *out) {
      cut(pieces, l, x, rows, w, width, outs, out, call->half);
    };
    add(inputs[l].normed, w.heads_h, call->in_heads, heads, to.heads);
    add(inputs[l].attended, w.out_h, call->in_out, hidden, to.out);
    add(inputs[l].ffn_normed, w.units_h, call->in_units, units, to.units);
    add(inputs[l].activated, w.down_h, call->in_down, hidden, to.down);
  }
  if (rows == 1)
    one_row(stream, weights, inputs, layers, pieces);
  else
    many_rows(stream, weights, inputs, layers, pieces);
  if (!v) return;
  const LayerWeights &last = weights[call->layers];
  for (int64_t row = 0; row < rows; ++row)
    normed(z + row * hidden, hidden, call->eps, last.norm, last.norm_bias, v + row * hidden);
}
