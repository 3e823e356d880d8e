// Decodes the part of a JPEG that a crop needs, and resizes it as Pillow does, bit for bit.
//
// The decoder is the libjpeg-turbo that Pillow itself calls (3.0 or newer), found at run time, so that the pixels are
// Pillow's. No header of it is needed: `Decoder`, `Source` and `Errors` below describe the few fields used here of its
// structs, which are part of its binary interface (version 6.2, 64 bits). libjpeg checks version and size of the struct
// in `jpeg_CreateDecompress`; tests/data/test_jpeg.py compares every offset with `jpeglib.h`.
//
// Letters: W x H pixels of the result, w x h of a decoded region, 4 bytes a pixel in between (red, green, blue, unused).

#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace {

// --- libjpeg's binary interface -----------------------------------------------------------------------------------

struct Errors {  // jpeg_error_mgr
  void (*fatal)(void*);
  void (*message)(void*, int);
  char unused_1[24];
  int code;
  char unused_2[84];
  long warnings;
  char unused_3[32];
};
static_assert(sizeof(Errors) == 168);

struct Component {  // jpeg_component_info
  int id, index, across, down;
  char unused[80];
};
static_assert(sizeof(Component) == 96);

struct Source {  // jpeg_source_mgr
  const uint8_t* next;
  size_t left;
};

struct Decoder {  // jpeg_decompress_struct
  Errors* errors;
  char unused_1[32];
  Source* source;
  unsigned width, height;
  int components, colours, wanted_colours;
  unsigned scale, denominator;
  char unused_2[60];
  unsigned out_width, out_height;
  char unused_3[24];
  unsigned line;
  char unused_4[20];
  int (*known)[64];
  char unused_8[96];
  int bits;
  char unused_5[12];
  int progressive;
  char unused_6[84];
  void* markers;
  int most_across, most_down, block;
  char unused_7[212];
};
static_assert(offsetof(Decoder, width) == 48 && offsetof(Decoder, denominator) == 72);
static_assert(offsetof(Decoder, out_width) == 136 && offsetof(Decoder, line) == 168 && offsetof(Decoder, bits) == 296);
static_assert(offsetof(Decoder, known) == 192 && offsetof(Decoder, source) == 40);
static_assert(offsetof(Decoder, progressive) == 312);
static_assert(offsetof(Decoder, markers) == 400 && offsetof(Decoder, block) == 416 && sizeof(Decoder) == 632);

constexpr int VERSION = 62, GREY = 1, RGB = 2, YCC = 3, RGBX = 7, EXIF_OR_XMP = 0xE1;

struct Library {
  Errors* (*errors)(Errors*);
  void (*create)(Decoder*, int, size_t);
  void (*destroy)(Decoder*);
  void (*source)(Decoder*, const uint8_t*, unsigned long);
  void (*keep)(Decoder*, int, unsigned);
  int (*header)(Decoder*, int);
  int (*start)(Decoder*);
  void (*crop)(Decoder*, unsigned*, unsigned*);
  unsigned (*skip)(Decoder*, unsigned);
  unsigned (*read)(Decoder*, uint8_t**, unsigned);
};
Library lib;

// A decoder that is destroyed with its scope. Errors come back through `jump`, as exceptions must not cross C code:
// between `setjmp` and them, no object with a destructor may be created.
struct Session {
  Decoder decoder;
  Errors errors;
  jmp_buf jump;
  bool alive = false;
  ~Session() {
    if (alive) lib.destroy(&decoder);
  }
};

void fatal(void* decoder) {
  Errors* errors = static_cast<Decoder*>(decoder)->errors;
  auto* session = reinterpret_cast<Session*>(reinterpret_cast<char*>(errors) - offsetof(Session, errors));
  longjmp(session->jump, 1);
}

void message(void* decoder, int level) {
  if (level < 0) static_cast<Decoder*>(decoder)->errors->warnings++;
}

void watch_errors(Session& s) {
  s.decoder.errors = lib.errors(&s.errors);
  s.errors.fatal = fatal;
  s.errors.message = message;
}

// Whether the library has the structs above.
bool fits(Session& s) {
  watch_errors(s);
  if (setjmp(s.jump)) return false;
  lib.create(&s.decoder, VERSION, sizeof(Decoder));
  s.alive = true;
  return true;
}

// Reads the header. False: it is damaged, or has colours that are left to Pillow.
bool open(Session& s, const uint8_t* data, int64_t size) {
  watch_errors(s);
  if (setjmp(s.jump)) return false;
  lib.create(&s.decoder, VERSION, sizeof(Decoder));
  s.alive = true;
  lib.source(&s.decoder, data, static_cast<unsigned long>(size));
  lib.keep(&s.decoder, EXIF_OR_XMP, 1);
  if (lib.header(&s.decoder, 1) != 1 || s.decoder.bits != 8 || s.errors.warnings) return false;
  const bool grey = s.decoder.components == 1 && s.decoder.colours == GREY;
  return grey || (s.decoder.components == 3 && (s.decoder.colours == RGB || s.decoder.colours == YCC));
}

// Whether the pixels' code goes on to the end of the file, with no marker in it but restarts. Others may be errors below
// the part that is decoded, which Pillow would notice. Progressive files are read to their end anyway.
bool undisturbed(const Decoder& decoder) {
  if (decoder.progressive) return true;
  const uint8_t *at = decoder.source->next, *end = at + decoder.source->left;
  while ((at = static_cast<const uint8_t*>(std::memchr(at, 0xFF, static_cast<size_t>(end - at))))) {
    if (end - at < 2) return false;
    const uint8_t kind = at[1];
    if (kind == 0xD9) return end - at == 2;
    if (kind != 0 && kind != 0xFF && (kind < 0xD0 || kind > 0xD7)) return false;
    at += kind == 0xFF ? 1 : 2;  // any number of 0xFF may come before a marker
  }
  return false;
}

// Whether all coefficients of a progressive file are known once it has been read. Otherwise libjpeg smooths the pixels
// across blocks, also those that are not decoded here.
bool complete(const Decoder& decoder) {
  if (!decoder.progressive) return true;
  for (int c = 0; c < decoder.components; c++)
    for (int i = 0; i < 64; i++)
      if (decoder.known[c][i] != 0) return false;
  return true;
}

// --- resizing as in Pillow (libImaging/Resample.c) ----------------------------------------------------------------

constexpr int BITS = 32 - 8 - 2;  // of a weight behind the point

double bilinear(double x) {
  x = std::fabs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

// What each pixel of the result takes from which pixels of the image, in one direction.
struct Taps {
  int size = 0;                 // weights a pixel
  std::vector<int> first, count;
  std::vector<int32_t> weights;

  // Of the `resized` pixels that [from, to) of the image becomes, `wanted` from number `skipped` on.
  Taps(int length, float from, float to, int resized, int skipped, int wanted, bool cubic) : first(wanted), count(wanted) {
    const double scale = static_cast<double>(to - from) / resized, stretch = std::max(scale, 1.0);
    const double support = (cubic ? 2.0 : 1.0) * stretch, inverse = 1.0 / stretch;
    size = static_cast<int>(std::ceil(support)) * 2 + 1;
    weights.assign(static_cast<size_t>(size) * wanted, 0);
    std::vector<double> k(size);
    for (int i = 0; i < wanted; i++) {
      const double centre = from + (i + skipped + 0.5) * scale;
      const int low = std::max(static_cast<int>(centre - support + 0.5), 0);
      const int n = std::min(static_cast<int>(centre + support + 0.5), length) - low;
      double sum = 0.0;
      for (int x = 0; x < n; x++) {
        const double at = (x + low - centre + 0.5) * inverse;
        k[x] = cubic ? bicubic(at) : bilinear(at);
        sum += k[x];
      }
      for (int x = 0; x < n; x++) {
        const double w = (sum != 0.0 ? k[x] / sum : k[x]) * (1 << BITS);
        weights[static_cast<size_t>(i) * size + x] = static_cast<int32_t>(w < 0 ? w - 0.5 : w + 0.5);
      }
      first[i] = low;
      count[i] = n;
    }
  }
  int wanted() const { return static_cast<int>(first.size()); }
  int start() const { return first.front(); }
  int end() const { return first.back() + count.back(); }
};

// Sixteen sums, of four pixels. GCC spreads its own vectors of this length over many instructions.
#if defined(__AVX512F__) && defined(__AVX512BW__)
struct Sums {
  __m512i v;
  static Sums half() { return {_mm512_set1_epi32(1 << (BITS - 1))}; }
  void add(const uint8_t* p, int32_t k) {
    const __m512i pixels = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    v = _mm512_add_epi32(v, _mm512_mullo_epi32(pixels, _mm512_set1_epi32(k)));
  }
  __m128i done() const {
    return _mm512_cvtusepi32_epi8(_mm512_max_epi32(_mm512_srai_epi32(v, BITS), _mm512_setzero_si512()));
  }
  void store(uint8_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), done()); }
};
#elif defined(__AVX2__)
struct Sums {
  __m256i low, high;
  static Sums half() { return {_mm256_set1_epi32(1 << (BITS - 1)), _mm256_set1_epi32(1 << (BITS - 1))}; }
  void add(const uint8_t* p, int32_t k) {
    const __m128i pixels = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i weight = _mm256_set1_epi32(k);
    low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(pixels), weight));
    high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(pixels, 8)), weight));
  }
  void store(uint8_t* p) const {
    const __m256i words = _mm256_packs_epi32(_mm256_srai_epi32(low, BITS), _mm256_srai_epi32(high, BITS));
    const __m256i bytes = _mm256_packus_epi16(words, words);
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, order)));
  }
};
#else
struct Sums {
  int32_t v[16];
  static Sums half() {
    Sums sums;
    for (int32_t& each : sums.v) each = 1 << (BITS - 1);
    return sums;
  }
  void add(const uint8_t* p, int32_t k) {
    for (int i = 0; i < 16; i++) v[i] += p[i] * k;
  }
  void store(uint8_t* p) const {
    for (int i = 0; i < 16; i++) p[i] = static_cast<uint8_t>(std::min(std::max(v[i] >> BITS, 0), 255));
  }
};
#endif

inline int groups(int rows) { return (rows + 3) / 4; }

// Bytes from row to row of w pixels: a multiple of 16.
inline size_t stride_of(int w) { return (static_cast<size_t>(w) + 3) / 4 * 16; }

// Rows of pixels that lie one after the other, with room for whole groups of four.
struct Rows {
  std::vector<uint8_t> bytes;
  int w = 0, h = 0;
  void shape(int width, int height) {
    w = width, h = height;
    bytes.resize(stride_of(w) * groups(h) * 4);
  }
  uint8_t* row(int y) { return bytes.data() + stride_of(w) * y; }
};

#if defined(__AVX2__)
// Transposes 4 x 4 pixels.
inline void transpose(const uint8_t* const from[4], uint8_t* const to[4]) {
  const auto at = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from[i])); };
  const auto put = [&](int i, __m128i pixels) { _mm_storeu_si128(reinterpret_cast<__m128i*>(to[i]), pixels); };
  const __m128i a = at(0), b = at(1), c = at(2), d = at(3);
  const __m128i ab = _mm_unpacklo_epi32(a, b), ab_end = _mm_unpackhi_epi32(a, b);
  const __m128i cd = _mm_unpacklo_epi32(c, d), cd_end = _mm_unpackhi_epi32(c, d);
  put(0, _mm_unpacklo_epi64(ab, cd));
  put(1, _mm_unpackhi_epi64(ab, cd));
  put(2, _mm_unpacklo_epi64(ab_end, cd_end));
  put(3, _mm_unpackhi_epi64(ab_end, cd_end));
}
#endif

// Four rows of w pixels -> a group of rows.
void group(const uint8_t* const row[4], int w, uint8_t* to) {
  int x = 0;
#if defined(__AVX2__)
  for (; x + 4 <= w; x += 4) {
    const uint8_t* const from[4] = {row[0] + 4 * x, row[1] + 4 * x, row[2] + 4 * x, row[3] + 4 * x};
    uint8_t* const columns[4] = {to + 16 * x, to + 16 * x + 16, to + 16 * x + 32, to + 16 * x + 48};
    transpose(from, columns);
  }
#endif
  for (; x < w; x++)
    for (int r = 0; r < 4; r++) std::memcpy(to + 16 * x + 4 * r, row[r] + 4 * x, 4);
}

// The inverse.
void ungroup(const uint8_t* in, int w, uint8_t* to, size_t stride) {
  int x = 0;
#if defined(__AVX2__)
  for (; x + 4 <= w; x += 4) {
    const uint8_t* const columns[4] = {in + 16 * x, in + 16 * x + 16, in + 16 * x + 32, in + 16 * x + 48};
    uint8_t* const rows[4] = {to + 4 * x, to + stride + 4 * x, to + 2 * stride + 4 * x, to + 3 * stride + 4 * x};
    transpose(columns, rows);
  }
#endif
  for (; x < w; x++)
    for (int r = 0; r < 4; r++) std::memcpy(to + r * stride + 4 * x, in + 16 * x + 4 * r, 4);
}

// Four rows of w pixels that begin at column `left` of the image -> four rows of W pixels, one after the other.
void across(const uint8_t* const row[4], int w, int left, const Taps& taps, std::vector<uint8_t>& grouped,
            uint8_t* to) {
  const int wanted = taps.wanted();
  grouped.resize(static_cast<size_t>(w + wanted) * 16);
  group(row, w, grouped.data());
  uint8_t* const done = grouped.data() + static_cast<size_t>(w) * 16;
  for (int i = 0; i < wanted; i++) {
    const int32_t* k = &taps.weights[static_cast<size_t>(i) * taps.size];
    const uint8_t* column = grouped.data() + static_cast<size_t>(taps.first[i] - left) * 16;
    Sums sums = Sums::half();
    for (int x = 0; x < taps.count[i]; x++) sums.add(column + 16 * x, k[x]);
    sums.store(done + 16 * i);
  }
  ungroup(done, wanted, to, stride_of(wanted));
}

// The same for all rows.
void across(Rows& rows, int left, const Taps& taps, std::vector<uint8_t>& grouped, Rows& result) {
  result.shape(taps.wanted(), rows.h);
  for (int y = 0; y < rows.h; y += 4) {
    const uint8_t* const four[4] = {rows.row(y), rows.row(y + 1), rows.row(y + 2), rows.row(y + 3)};
    across(four, rows.w, left, taps, grouped, result.row(y));
  }
}

// Rows that begin at row `top` of the image -> H rows of as many pixels.
void down(Rows& rows, int top, const Taps& taps, Rows& result) {
  result.shape(rows.w, static_cast<int>(taps.first.size()));
  const size_t bytes = stride_of(rows.w);
  for (size_t i = 0; i < taps.first.size(); i++) {
    const int32_t* k = &taps.weights[i * taps.size];
    const uint8_t* row = rows.row(taps.first[i] - top);
    uint8_t* to = result.row(static_cast<int>(i));
    size_t j = 0;
    for (; j + 64 <= bytes; j += 64) {
      Sums a = Sums::half(), b = a, c = a, d = a;
      for (int x = 0; x < taps.count[i]; x++) {
        const uint8_t* p = row + x * bytes + j;
        a.add(p, k[x]);
        b.add(p + 16, k[x]);
        c.add(p + 32, k[x]);
        d.add(p + 48, k[x]);
      }
      a.store(to + j);
      b.store(to + j + 16);
      c.store(to + j + 32);
      d.store(to + j + 48);
    }
    for (; j < bytes; j += 16) {
      Sums a = Sums::half();
      for (int x = 0; x < taps.count[i]; x++) a.add(row + x * bytes + j, k[x]);
      a.store(to + j);
    }
  }
}

// Memory that a thread keeps from image to image.
struct Room {
  Rows region, turned, between, resized;
  std::vector<uint8_t> lines, grouped;
  std::unique_ptr<uint8_t[]> file;  // not a vector, which would be cleared first
  size_t file_room = 0;
  size_t bytes() const {
    return region.bytes.capacity() + turned.bytes.capacity() + between.bytes.capacity() + resized.bytes.capacity() +
           lines.capacity() + grouped.capacity() + file_room;
  }
  uint8_t* file_of(size_t size) {
    if (file_room < size) {
      file.reset();
      file_room = 0;
      file.reset(new uint8_t[size]);
      file_room = size;
    }
    return file.get();
  }
};
constexpr size_t KEPT = 16 << 20;  // bytes; a photograph of 12 megapixels may need 50 MB

// A thread's room.
Room& kept() {
  static thread_local Room room;
  return room;
}

// The same while one image is in it. However that ends, also with an error, too much is given back.
struct Stay {
  Room& room;
  ~Stay() {
    if (room.bytes() > KEPT) room = Room{};
  }
};

// --- regions ------------------------------------------------------------------------------------------------------

struct Region {
  int left, top, right, bottom;
};

// Decodes these pixels of an image that should have `width` x `tall`: calls `take(y, row)` with each row, 4 bytes a
// pixel, y from 0; the last four rows remain where they are. A wider part is read where the chroma of the pixels at the
// edges depends on neighbours.
template <class Take>
bool decode(Session& s, const Region& want, int width, int tall, Room& room, const Take& take) {
  if (setjmp(s.jump)) return false;
  if (lib.start(&s.decoder) != 1 || !complete(s.decoder)) return false;
  // Lossless files are never decoded smaller.
  if (static_cast<int>(s.decoder.out_width) != width || static_cast<int>(s.decoder.out_height) != tall) return false;
  const bool plain = s.decoder.most_across == 1 && s.decoder.most_down == 1;
  const int margin = plain ? 0 : s.decoder.most_across * s.decoder.block;
  unsigned first = static_cast<unsigned>(std::max(want.left - margin, 0));
  unsigned columns = static_cast<unsigned>(std::min(want.right + margin, width)) - first;
  if (columns < static_cast<unsigned>(width)) lib.crop(&s.decoder, &first, &columns);
  else first = 0;
  const size_t stride = stride_of(static_cast<int>(s.decoder.out_width));
  room.lines.resize(stride * 4);
  const unsigned above = static_cast<unsigned>(want.top);
  if (above && lib.skip(&s.decoder, above) != above) return false;
  for (int y = 0; y < want.bottom - want.top; y++) {
    uint8_t* line = room.lines.data() + stride * (y % 4);
    if (lib.read(&s.decoder, &line, 1) != 1) return false;
    take(y, line + (want.left - static_cast<int>(first)) * 4);
  }
  return s.errors.warnings == 0;
}

// EXIF orientations: whether rows are columns, and which sides are swapped, of the stored image.
struct Turn {
  bool transposed, mirrored, upside_down;
};
constexpr Turn TURNS[9] = {{0, 0, 0}, {0, 0, 0}, {0, 1, 0}, {0, 1, 1}, {0, 0, 1}, {1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {1, 1, 0}};

// The part of the stored image that holds these upright pixels; `width` x `height` is the size of the stored image.
Region stored(const Region& up, const Turn& turn, int width, int height) {
  Region r = turn.transposed ? Region{up.top, up.left, up.bottom, up.right} : up;
  if (turn.mirrored) r = Region{width - r.right, r.top, width - r.left, r.bottom};
  if (turn.upside_down) r = Region{r.left, height - r.bottom, r.right, height - r.top};
  return r;
}

// Stored pixels -> upright.
void turn_up(Rows& in, const Turn& turn, Rows& out) {
  out.shape(turn.transposed ? in.h : in.w, turn.transposed ? in.w : in.h);
  for (int y = 0; y < out.h; y++)
    for (int x = 0; x < out.w; x++) {
      const int across = turn.transposed ? y : x, along = turn.transposed ? x : y;
      const int from_x = turn.mirrored ? in.w - 1 - across : across, from_y = turn.upside_down ? in.h - 1 - along : along;
      std::memcpy(out.row(y) + 4 * x, in.row(from_y) + 4 * from_x, 4);
    }
}

// RGB -> luma as in Pillow (ITU-R 601), in place, in the first of the 4 bytes.
void to_luma(uint8_t* row, int w) {
  for (uint8_t *p = row, *end = row + 4 * w; p < end; p += 4)
    p[0] = static_cast<uint8_t>((p[0] * 19595u + p[1] * 38470u + p[2] * 7471u + 0x8000u) >> 16);
}

// A row of 4 bytes a pixel -> `channels`.
void pack(const uint8_t* in, int w, int channels, uint8_t* out) {
  int x = 0;
#if defined(__AVX2__)
  const __m128i order = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
  for (; channels == 3 && x + 8 <= w; x += 4) {  // writes 4 bytes too many, within the row
    const __m128i four = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 4 * x));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 3 * x), _mm_shuffle_epi8(four, order));
  }
#endif
  for (; x < w; x++)
    for (int c = 0; c < channels; c++) out[channels * x + c] = in[4 * x + c];
}

// A part of an image whose header has been read, upright and resized: uint8 (H, W, channels). False: leave it to Pillow.
//
// box: left, right, top, bottom in pixels of the upright image, decoded at 1 / denominator of its size.
// size_of: how many columns the box becomes, the first that is wanted, W; the same for rows, H.
bool resized_part(Session& s, Room& room, int denominator, int orientation, const float* box, const int32_t* size_of,
                  bool cubic, bool newer, int channels, uint8_t* out) {
  s.decoder.wanted_colours = RGBX;
  s.decoder.scale = 1;
  s.decoder.denominator = static_cast<unsigned>(denominator);
  const Turn turn = TURNS[orientation];
  const int stored_w = static_cast<int>((s.decoder.width + denominator - 1) / denominator);
  const int stored_h = static_cast<int>((s.decoder.height + denominator - 1) / denominator);
  const int w = turn.transposed ? stored_h : stored_w, h = turn.transposed ? stored_w : stored_h;
  const int width = size_of[0], height = size_of[3];
  const Taps x(w, box[0], box[1], width, size_of[1], size_of[2], cubic);
  const Taps y(h, box[2], box[3], height, size_of[4], size_of[5], cubic);
  const Region up{x.start(), y.start(), x.end(), y.end()};
  const Region part = stored(up, turn, stored_w, stored_h);
  const int region_w = up.right - up.left, region_h = up.bottom - up.top;
  // Pillow 13 starts vertically if the height shrinks by more than twice as many pixels as the width.
  const bool down_first = newer && h > height && h - height > 2 * (w - width);
  if (orientation == 1 && !down_first) {  // four rows at a time, while they are in the processor's cache
    room.between.shape(x.wanted(), region_h);
    const uint8_t* four[4] = {nullptr, nullptr, nullptr, nullptr};
    const auto take = [&](int row, uint8_t* pixels) {
      if (channels == 1) to_luma(pixels, region_w);
      for (int r = row % 4; r < 4; r++) four[r] = pixels;  // the last row stands in for those that are lacking
      if (row % 4 == 3 || row + 1 == region_h)
        across(four, region_w, up.left, x, room.grouped, room.between.row(row / 4 * 4));
    };
    if (!decode(s, part, stored_w, stored_h, room, take)) return false;
    down(room.between, up.top, y, room.resized);
  } else {
    room.region.shape(part.right - part.left, part.bottom - part.top);
    const auto take = [&](int row, uint8_t* pixels) {
      if (channels == 1) to_luma(pixels, room.region.w);
      std::memcpy(room.region.row(row), pixels, static_cast<size_t>(room.region.w) * 4);
    };
    if (!decode(s, part, stored_w, stored_h, room, take)) return false;
    Rows* pixels = &room.region;
    if (orientation > 1) {
      turn_up(room.region, turn, room.turned);
      pixels = &room.turned;
    }
    if (down_first) {
      down(*pixels, up.top, y, room.between);
      across(room.between, up.left, x, room.grouped, room.resized);
    } else {
      across(*pixels, up.left, x, room.grouped, room.between);
      down(room.between, up.top, y, room.resized);
    }
  }
  for (int row = 0; row < room.resized.h; row++)
    pack(room.resized.row(row), room.resized.w, channels, out + static_cast<size_t>(row) * room.resized.w * channels);
  return true;
}

// --- random crops --------------------------------------------------------------------------------------------------

// NumPy's `default_rng(words)`: SeedSequence (O'Neill, "Developing a seed_seq alternative", 2015) and PCG64 (O'Neill,
// "PCG: a family of simple fast space-efficient statistically good algorithms", 2014, XSL RR 128/64).
class Generator {
  using Wide = unsigned __int128;
  Wide state, increment;
  bool has_half = false;
  uint32_t half = 0;

  void step() { state = state * ((static_cast<Wide>(2549297995355413924ull) << 64) + 4865540595714422341ull) + increment; }

  uint32_t next_32() {
    if (has_half) {
      has_half = false;
      return half;
    }
    const uint64_t both = next();
    has_half = true;
    half = static_cast<uint32_t>(both >> 32);
    return static_cast<uint32_t>(both);
  }

 public:
  Generator(const uint32_t* words, int count) {
    constexpr int POOL = 4;
    uint32_t pool[POOL], factor = 0x43b0d7e5;
    const auto hashed = [&](uint32_t value) {
      value ^= factor;
      factor *= 0x931e8875;
      value *= factor;
      return value ^ value >> 16;
    };
    const auto mixed = [](uint32_t x, uint32_t y) {
      const uint32_t both = 0xca01f9dd * x - 0x4973f715 * y;
      return both ^ both >> 16;
    };
    for (int i = 0; i < POOL; i++) pool[i] = hashed(i < count ? words[i] : 0);
    for (int from = 0; from < POOL; from++)
      for (int to = 0; to < POOL; to++)
        if (from != to) pool[to] = mixed(pool[to], hashed(pool[from]));
    for (int from = POOL; from < count; from++)
      for (int to = 0; to < POOL; to++) pool[to] = mixed(pool[to], hashed(words[from]));
    uint64_t seeds[4] = {};
    factor = 0x8b51f9dd;
    for (int i = 0; i < 8; i++) {
      uint32_t value = pool[i % POOL] ^ factor;
      factor *= 0x58f38ded;
      value *= factor;
      seeds[i / 2] |= static_cast<uint64_t>(value ^ value >> 16) << 32 * (i % 2);
    }
    state = 0;
    increment = (static_cast<Wide>(seeds[2]) << 64 | seeds[3]) << 1 | 1;
    step();
    state += static_cast<Wide>(seeds[0]) << 64 | seeds[1];
    step();
  }

  uint64_t next() {
    step();
    const uint64_t folded = static_cast<uint64_t>(state >> 64) ^ static_cast<uint64_t>(state);
    const int turns = static_cast<int>(state >> 122);
    return folded >> turns | folded << (-turns & 63);
  }

  // Generator.uniform(low, high)
  double uniform(double low, double high) {
    return low + (high - low) * (static_cast<double>(next() >> 11) * (1.0 / 9007199254740992.0));
  }

  // Generator.integers(0, count), for 0 < count < 2**32 (Lemire, "Fast random integer generation in an interval", 2019)
  uint32_t integer(uint32_t count) {
    if (count == 1) return 0;
    uint64_t product = static_cast<uint64_t>(next_32()) * count;
    if (static_cast<uint32_t>(product) < count) {
      const uint32_t least = -count % count;
      while (static_cast<uint32_t>(product) < least) product = static_cast<uint64_t>(next_32()) * count;
    }
    return static_cast<uint32_t>(product >> 32);
  }
};

struct Box {
  int left, top, width, height;
};

// As `random_box` in excite/data/geometry.py. `ranges`: smallest and largest share of the area; smallest and largest
// width / height; the logarithms of these. False: a side is so close to the middle of two lengths that this exponential
// function and NumPy's might round it differently.
bool random_box(Generator& rng, int width, int height, const double* ranges, Box& box) {
  constexpr int ATTEMPTS = 10;
  constexpr double CLOSE = 1e-6;
  double shares[ATTEMPTS], logs[ATTEMPTS];
  for (double& each : shares) each = rng.uniform(ranges[0], ranges[1]);
  for (double& each : logs) each = rng.uniform(ranges[4], ranges[5]);
  const double pixels = static_cast<double>(static_cast<int64_t>(height) * width);
  const auto unsure = [](double side) { return std::fabs(side - std::floor(side) - 0.5) < CLOSE; };
  for (int i = 0; i < ATTEMPTS; i++) {
    const double area = pixels * shares[i], aspect = std::exp(logs[i]);
    const double exact_wide = std::sqrt(area * aspect), exact_tall = std::sqrt(area / aspect);
    if (unsure(exact_wide) || unsure(exact_tall)) return false;
    const double wide = std::nearbyint(exact_wide), tall = std::nearbyint(exact_tall);
    if (wide < 1 || wide > width || tall < 1 || tall > height) continue;
    box.width = static_cast<int>(wide), box.height = static_cast<int>(tall);
    box.left = static_cast<int>(rng.integer(static_cast<uint32_t>(width - box.width) + 1));
    box.top = static_cast<int>(rng.integer(static_cast<uint32_t>(height - box.height) + 1));
    return true;
  }
  const double aspect = static_cast<double>(width) / height;
  box.width = width, box.height = height;
  if (aspect < ranges[2]) box.height = std::min(height, std::max(1, static_cast<int>(std::nearbyint(width / ranges[2]))));
  if (aspect > ranges[3]) box.width = std::min(width, std::max(1, static_cast<int>(std::nearbyint(height * ranges[3]))));
  box.left = (width - box.width) / 2, box.top = (height - box.height) / 2;
  return true;
}

// A file that is open until the end of its scope.
struct Opened {
  const int descriptor;
  ~Opened() {
    if (descriptor >= 0) ::close(descriptor);
  }
};

// All of these bytes of a file.
bool read_all(int descriptor, int64_t offset, int64_t length, uint8_t* to) {
  for (int64_t done = 0; done < length;) {
    const ssize_t n = pread(descriptor, to + done, static_cast<size_t>(length - done), offset + done);
    if (n <= 0) return false;
    done += n;
  }
  return true;
}

constexpr int64_t LARGEST = 1 << 30;  // bytes of a file
constexpr uint8_t START[] = {0xFF, 0xD8, 0xFF}, END[] = {0xFF, 0xD9};

// These bytes of a file, in `room.file`, if they begin as a JPEG does; of others no more is read. How many there are.
int64_t jpeg_in(int descriptor, int64_t offset, int64_t length, Room& room) {
  uint8_t start[sizeof START];
  if (length < static_cast<int64_t>(sizeof START + sizeof END) || length > LARGEST) return 0;
  if (!read_all(descriptor, offset, sizeof start, start) || std::memcmp(start, START, sizeof start)) return 0;
  return read_all(descriptor, offset, length, room.file_of(length)) ? length : 0;
}

// The bytes of a JPEG: a whole file, or, with a descriptor, a part of one. 0: it is none, or neither is given.
int64_t bytes_of(const char* path, int descriptor, int64_t offset, int64_t length, Room& room) {
  if (descriptor >= 0) return jpeg_in(descriptor, offset, length, room);
  if (!path) return 0;
  const Opened file{::open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)};  // without waiting for a FIFO's writer
  struct stat status;
  if (file.descriptor < 0 || fstat(file.descriptor, &status) || !S_ISREG(status.st_mode)) return 0;
  return jpeg_in(file.descriptor, 0, status.st_size, room);
}

// What all crops of a call have in common.
struct Crops {
  double ranges[6];  // see random_box
  int64_t most;      // pixels of an image
  int32_t tall, wide, cubic, newer, channels, words;
};

bool random_crop(const uint8_t* data, int64_t size, Generator& rng, const Crops& crops, Room& room, uint8_t* out) {
  if (std::memcmp(data + size - sizeof END, END, sizeof END)) return false;
  Session s;
  if (!open(s, data, size) || !undisturbed(s.decoder) || s.decoder.markers != nullptr) return false;
  const int width = static_cast<int>(s.decoder.width), height = static_cast<int>(s.decoder.height);
  if (static_cast<int64_t>(width) * height > crops.most) return false;
  Box box;
  if (!random_box(rng, width, height, crops.ranges, box)) return false;
  int smaller = 8;  // as `Jpeg.cropped` in excite/data/decode.py
  while (smaller > 1 && (box.width < smaller * crops.wide || box.height < smaller * crops.tall)) smaller /= 2;
  const double scale = smaller;
  const float sides[] = {static_cast<float>(box.left / scale), static_cast<float>(box.left / scale + box.width / scale),
                         static_cast<float>(box.top / scale), static_cast<float>(box.top / scale + box.height / scale)};
  const int32_t size_of[] = {crops.wide, 0, crops.wide, crops.tall, 0, crops.tall};
  return resized_part(s, room, smaller, 1, sides, size_of, crops.cubic, crops.newer, crops.channels, out);
}

}  // namespace

extern "C" {

// Finds the functions that a library calls which is loaded from `path`. 0: found; 1: no library; 2: one lacks; 3: they
// have another interface.
int excite_jpeg_bind(const char* path) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) return 1;
  const struct {
    void** to;
    const char* name;
  } functions[] = {
      {reinterpret_cast<void**>(&lib.errors), "jpeg_std_error"},
      {reinterpret_cast<void**>(&lib.create), "jpeg_CreateDecompress"},
      {reinterpret_cast<void**>(&lib.destroy), "jpeg_destroy_decompress"},
      {reinterpret_cast<void**>(&lib.source), "jpeg_mem_src"},
      {reinterpret_cast<void**>(&lib.keep), "jpeg_save_markers"},
      {reinterpret_cast<void**>(&lib.header), "jpeg_read_header"},
      {reinterpret_cast<void**>(&lib.start), "jpeg_start_decompress"},
      {reinterpret_cast<void**>(&lib.crop), "jpeg_crop_scanline"},
      {reinterpret_cast<void**>(&lib.skip), "jpeg_skip_scanlines"},
      {reinterpret_cast<void**>(&lib.read), "jpeg_read_scanlines"},
  };
  for (const auto& each : functions)
    if (!(*each.to = dlsym(handle, each.name))) return 2;
  Session s;
  return fits(s) ? 0 : 3;
}

// Width, height (as stored) and whether there may be an EXIF orientation. 0: read; 1: leave this file to Pillow.
int excite_jpeg_header(const uint8_t* data, int64_t size, int32_t* out) {
  Session s;
  if (!open(s, data, size) || !undisturbed(s.decoder)) return 1;
  out[0] = static_cast<int32_t>(s.decoder.width);
  out[1] = static_cast<int32_t>(s.decoder.height);
  out[2] = s.decoder.markers != nullptr;
  return 0;
}

// A part of an image; see `resized_part`. 0: done; 1: leave this file to Pillow; 2: not enough memory.
int excite_jpeg_part(const uint8_t* data, int64_t size, int denominator, int orientation, const float* box,
                     const int32_t* size_of, int cubic, int newer, int channels, uint8_t* out) try {
  Room& room = kept();
  const Stay stay{room};
  Session s;
  if (!open(s, data, size)) return 1;
  return resized_part(s, room, denominator, orientation, box, size_of, cubic, newer, channels, out) ? 0 : 1;
} catch (const std::bad_alloc&) {
  return 2;
}

// Random crops of several files: uint8 (count, H, W, channels) in `out`, and whether each is done.
//
// paths, descriptors, offsets, lengths: where each is; see `bytes_of`.
// words: the seed that they have in common, and room for a last word, which each has for itself in `own`.
// beat: the number of the image that is read, -1 afterwards; and a count of them.
void excite_jpeg_crops(int64_t count, const char* const* paths, const int32_t* descriptors, const int64_t* offsets,
                       const int64_t* lengths, const int64_t* numbers, uint32_t* words, const uint32_t* own,
                       const Crops* crops, uint8_t* out, uint8_t* done, int64_t* beat) {
  Room& room = kept();
  const size_t bytes = static_cast<size_t>(crops->tall) * crops->wide * crops->channels;
  for (int64_t i = 0; i < count; i++) try {
    beat[0] = numbers[i];
    beat[1]++;
    done[i] = 0;
    const Stay stay{room};
    const int64_t size = bytes_of(paths[i], descriptors[i], offsets[i], lengths[i], room);
    words[crops->words - 1] = own[i];
    Generator rng(words, crops->words);
    done[i] = size > 0 && random_crop(room.file.get(), size, rng, *crops, room, out + bytes * i);
  } catch (const std::bad_alloc&) {
  }
  beat[0] = -1;
}

// For tests: `uniform(0, 1)` for each of `doubles`, then `integers(0, count)` for each of `integers`, in place.
void excite_jpeg_draws(const uint32_t* words, int count, double* doubles, int64_t n, uint32_t* integers, int64_t m) {
  Generator rng(words, count);
  for (int64_t i = 0; i < n; i++) doubles[i] = rng.uniform(0, 1);
  for (int64_t i = 0; i < m; i++) integers[i] = rng.integer(integers[i]);
}

}  // extern "C"
