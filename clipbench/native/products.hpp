// Matrix products of small matrices whose sizes are known when they are compiled, and what a convolution is made of. One element of a
// product is one sum in the order of the inner dimension, each multiplication and addition rounded once: no other element, and no
// width of a register, changes it.

template <typename Real> struct Vector;
template <> struct Vector<float> { typedef float of __attribute__((vector_size(REGISTER), aligned(4), may_alias)); };
template <> struct Vector<double> { typedef double of __attribute__((vector_size(REGISTER), aligned(8), may_alias)); };

// ROWS × COLUMNS registers of C = A B; of the last register of a row LAST elements are stored. The terms of a sum come in blocks of K:
// in B a row follows on the other, in A a block begins `jump` behind the one before. A may lie in any order; B is read to the end of its
// last register.
template <typename Real, int ROWS, int COLUMNS, int LAST>
static void __attribute__((noinline)) tile(const Real *a, long row, long column, long jump, const Real *b, long b_row, long blocks, long K,
                                           Real *c, long c_row) {
    typedef typename Vector<Real>::of V;
    constexpr int W = REGISTER / sizeof(Real);
    V sums[ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) sums[i][j] = (V){};
    for (; blocks > 0; --blocks, a += jump)
        for (long k = 0; k < K; ++k, b += b_row) {
            V right[COLUMNS];
#pragma GCC unroll 4
            for (int j = 0; j < COLUMNS; ++j) right[j] = *(const V *)(b + j * W);
#pragma GCC unroll 16
            for (int i = 0; i < ROWS; ++i) {
                const Real left = a[i * row + k * column];
#pragma GCC unroll 4
                for (int j = 0; j < COLUMNS; ++j) sums[i][j] += left * right[j];
            }
        }
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) memcpy(c + i * c_row + j * W, &sums[i][j], j == COLUMNS - 1 ? LAST * sizeof(Real) : sizeof(V));
}

// Rows of a tile: its sums, a row of B and one element of A must fit the registers, 32 of them with AVX-512 and else 16.
constexpr int rows_of(int columns) {
    return REGISTER == 64 ? (columns == 4 ? 6 : columns == 3 ? 8 : 12) : (columns >= 2 ? 6 : 10);
}
constexpr int WIDEST = REGISTER == 64 ? 4 : 2;

template <typename Real, int M, int COLUMNS, int LAST>
INLINE void band(const Real *a, long row, long column, long jump, const Real *b, long b_row, long blocks, long K, Real *c, long c_row) {
    constexpr int ROWS = rows_of(COLUMNS), REST = M % ROWS;
    for (int i = 0; i + ROWS <= M; i += ROWS)
        tile<Real, ROWS, COLUMNS, LAST>(a + i * row, row, column, jump, b, b_row, blocks, K, c + i * c_row, c_row);
    if constexpr (REST > 0)
        tile<Real, REST, COLUMNS, LAST>(a + (M - REST) * row, row, column, jump, b, b_row, blocks, K, c + (M - REST) * c_row, c_row);
}

// C = A B; A of M × K in any order, B of K × N with neighbouring elements in a row, C in rows of c_row. Of several blocks the sum.
template <typename Real, int M, int N, int K>
static void product(const Real *a, long row, long column, const Real *b, long b_row, Real *c, long c_row, long blocks = 1, long jump = 0) {
    constexpr int W = REGISTER / sizeof(Real), BAND = WIDEST * W, WHOLE = N / BAND, REST = N % BAND;
    for (int n = 0; n < WHOLE; ++n)
        band<Real, M, WIDEST, W>(a, row, column, jump, b + n * BAND, b_row, blocks, K, c + n * BAND, c_row);
    if constexpr (REST > 0)
        band<Real, M, (REST + W - 1) / W, REST % W == 0 ? W : REST % W>(
            a, row, column, jump, b + WHOLE * BAND, b_row, blocks, K, c + WHOLE * BAND, c_row);
}

// Sixteen bytes: four rows of four columns, or two of two.
template <typename Real> struct Block;
template <> struct Block<float> {
    typedef float of __attribute__((vector_size(16), aligned(4), may_alias));
    static constexpr int SIDE = 4;
    INLINE void turn(const float *from, long from_row, float *to, long to_row) {
        const of a = *(const of *)from, b = *(const of *)(from + from_row), c = *(const of *)(from + 2 * from_row),
                 d = *(const of *)(from + 3 * from_row);
        const of ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
        const of AB = __builtin_shufflevector(a, b, 2, 6, 3, 7), CD = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        *(of *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5);
        *(of *)(to + to_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
        *(of *)(to + 2 * to_row) = __builtin_shufflevector(AB, CD, 0, 1, 4, 5);
        *(of *)(to + 3 * to_row) = __builtin_shufflevector(AB, CD, 2, 3, 6, 7);
    }
};
template <> struct Block<double> {
    typedef double of __attribute__((vector_size(16), aligned(8), may_alias));
    static constexpr int SIDE = 2;
    INLINE void turn(const double *from, long from_row, double *to, long to_row) {
        const of a = *(const of *)from, b = *(const of *)(from + from_row);
        *(of *)to = __builtin_shufflevector(a, b, 0, 2);
        *(of *)(to + to_row) = __builtin_shufflevector(a, b, 1, 3);
    }
};

// A matrix in rows: of K × N in any order.
template <typename Real, int K, int N>
static void packed(const Real *b, long row, long column, Real *to, long to_row) {
    if (column == 1) {
        for (int k = 0; k < K; ++k) memcpy(to + k * to_row, b + k * row, N * sizeof(Real));
        return;
    }
    constexpr int SIDE = Block<Real>::SIDE, WHOLE_K = K - K % SIDE, WHOLE_N = N - N % SIDE;
    if (row != 1) {
        for (int k = 0; k < K; ++k)
            for (int n = 0; n < N; ++n) to[k * to_row + n] = b[k * row + n * column];
        return;
    }
    for (int k = 0; k < WHOLE_K; k += SIDE)
        for (int n = 0; n < WHOLE_N; n += SIDE) Block<Real>::turn(b + n * column + k, column, to + k * to_row + n, to_row);
    for (int n = 0; n < N; ++n)
        for (int k = n < WHOLE_N ? WHOLE_K : 0; k < K; ++k) to[k * to_row + n] = b[n * column + k];
}

// The patches of one example as columns, and their gradients added back to where they came from. In between stands an image with its
// padding, of every row first the columns 0, S, 2 S, … of a stride S, then those behind them: so neighbours in a patch's row are
// neighbours in memory.
template <typename Real, int CHANNELS, int H, int WIDTH, int KH, int KW, int SH, int SW, int PH, int PW, int DH, int DW>
struct Patches {
    static constexpr int OUT_H = (H + 2 * PH - DH * (KH - 1) - 1) / SH + 1, OUT_W = (WIDTH + 2 * PW - DW * (KW - 1) - 1) / SW + 1;
    static constexpr int FULL_H = H + 2 * PH, APART = (WIDTH + 2 * PW + SW - 1) / SW, ROW = APART * SW;
    static constexpr int column(int x) { return x % SW * APART + x / SW; }
    static void columns(const Real *image, Real *to) {
        alignas(64) static Real padded[CHANNELS * FULL_H * ROW];  // the padding stays zero
        for (int c = 0; c < CHANNELS; ++c)
            for (int y = 0; y < H; ++y)
                for (int x = 0; x < WIDTH; ++x) padded[(c * FULL_H + y + PH) * ROW + column(x + PW)] = image[(c * H + y) * WIDTH + x];
        for (int c = 0; c < CHANNELS; ++c)
            for (int r = 0; r < KH; ++r)
                for (int q = 0; q < KW; ++q)
                    for (int i = 0; i < OUT_H; ++i, to += OUT_W)
                        memcpy(to, padded + (c * FULL_H + i * SH + r * DH) * ROW + column(q * DW), OUT_W * sizeof(Real));
    }
    static void back(const Real *from, Real *image) {
        alignas(64) static Real padded[CHANNELS * FULL_H * ROW];
        memset(padded, 0, sizeof padded);
        for (int c = 0; c < CHANNELS; ++c)
            for (int r = 0; r < KH; ++r)
                for (int q = 0; q < KW; ++q)
                    for (int i = 0; i < OUT_H; ++i, from += OUT_W) {
                        Real *line = padded + (c * FULL_H + i * SH + r * DH) * ROW + column(q * DW);
                        for (int j = 0; j < OUT_W; ++j) line[j] += from[j];
                    }
        for (int c = 0; c < CHANNELS; ++c)
            for (int y = 0; y < H; ++y)
                for (int x = 0; x < WIDTH; ++x) image[(c * H + y) * WIDTH + x] = padded[(c * FULL_H + y + PH) * ROW + column(x + PW)];
    }
};

// The elements in order, NaN behind all others, as torch sorts them; room for as many.
template <typename Real> static bool before(Real left, Real right) { return left < right || (left == left && right != right); }

template <typename Real> static void sorted(Real *values, Real *room, long count) {
    if (count < 2) return;
    const long half = count / 2;
    sorted(values, room, half);
    sorted(values + half, room, count - half);
    memcpy(room, values, half * sizeof(Real));
    long left = 0, right = half, to = 0;
    while (left < half) values[to++] = right < count && before(values[right], room[left]) ? values[right++] : room[left++];
}
