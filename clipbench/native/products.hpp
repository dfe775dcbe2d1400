// Matrix products of small matrices whose sizes are known when they are compiled, and what a convolution is made of. One element of a
// product is one sum in the order of the inner dimension, each multiplication and addition rounded once: no other element, and no
// width of a register, changes it.

template <typename Real> struct Vector;
template <> struct Vector<float> { typedef float of __attribute__((vector_size(REGISTER), aligned(4), may_alias)); };
template <> struct Vector<double> { typedef double of __attribute__((vector_size(REGISTER), aligned(8), may_alias)); };

// ROWS × COLUMNS registers of C = A B, K terms each; of the last register of a row LAST elements are stored. A may lie in any order;
// B is read to the end of its last register.
template <typename Real, int ROWS, int COLUMNS, int LAST, bool MORE>
static void __attribute__((noinline)) tile(const Real *a, long row, long column, const Real *b, long b_row, long K, Real *c, long c_row) {
    typedef typename Vector<Real>::of V;
    constexpr int W = REGISTER / sizeof(Real);
    V sums[ROWS][COLUMNS];
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) {
            sums[i][j] = (V){};
            if (MORE) memcpy(&sums[i][j], c + i * c_row + j * W, j == COLUMNS - 1 ? LAST * sizeof(Real) : sizeof(V));
        }
    for (long k = 0; k < K; ++k) {
        V right[COLUMNS];
#pragma GCC unroll 4
        for (int j = 0; j < COLUMNS; ++j) right[j] = *(const V *)(b + k * b_row + j * W);
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

template <typename Real, int M, int COLUMNS, int LAST, bool MORE>
INLINE void band(const Real *a, long row, long column, const Real *b, long b_row, long K, Real *c, long c_row) {
    constexpr int ROWS = rows_of(COLUMNS), REST = M % ROWS;
    for (int i = 0; i + ROWS <= M; i += ROWS)
        tile<Real, ROWS, COLUMNS, LAST, MORE>(a + i * row, row, column, b, b_row, K, c + i * c_row, c_row);
    if constexpr (REST > 0)
        tile<Real, REST, COLUMNS, LAST, MORE>(a + (M - REST) * row, row, column, b, b_row, K, c + (M - REST) * c_row, c_row);
}

// C = A B, or C += A B if MORE; A of M × K in any order, B of K × N with neighbouring elements in a row, C in rows of c_row.
template <typename Real, int M, int N, int K, bool MORE>
static void product(const Real *a, long row, long column, const Real *b, long b_row, Real *c, long c_row) {
    constexpr int W = REGISTER / sizeof(Real), BAND = WIDEST * W, WHOLE = N / BAND, REST = N % BAND;
    for (int n = 0; n < WHOLE; ++n)
        band<Real, M, WIDEST, W, MORE>(a, row, column, b + n * BAND, b_row, K, c + n * BAND, c_row);
    if constexpr (REST > 0)
        band<Real, M, (REST + W - 1) / W, REST % W == 0 ? W : REST % W, MORE>(
            a, row, column, b + WHOLE * BAND, b_row, K, c + WHOLE * BAND, c_row);
}

// A matrix in rows: of K × N in any order.
template <typename Real, int K, int N>
static void packed(const Real *b, long row, long column, Real *to, long to_row) {
    if (column == 1) {
        for (int k = 0; k < K; ++k) memcpy(to + k * to_row, b + k * row, N * sizeof(Real));
        return;
    }
    constexpr int BLOCK = 8;
    int k = 0;
    if (row == 1)
        for (; k + BLOCK <= K; k += BLOCK) {
            int n = 0;
            for (; n + BLOCK <= N; n += BLOCK) {
                Real block[BLOCK][BLOCK];
                for (int i = 0; i < BLOCK; ++i) memcpy(block[i], b + (n + i) * column + k, sizeof block[i]);
                for (int j = 0; j < BLOCK; ++j)
                    for (int i = 0; i < BLOCK; ++i) to[(k + j) * to_row + n + i] = block[i][j];
            }
            for (; n < N; ++n)
                for (int j = 0; j < BLOCK; ++j) to[(k + j) * to_row + n] = b[n * column + k + j];
        }
    for (; k < K; ++k)
        for (int n = 0; n < N; ++n) to[k * to_row + n] = b[k * row + n * column];
}

// The patches of one example as columns, and their gradients added back to where they came from.
template <typename Real, int CHANNELS, int H, int WIDTH, int KH, int KW, int SH, int SW, int PH, int PW, int DH, int DW>
struct Patches {
    static constexpr int OUT_H = (H + 2 * PH - DH * (KH - 1) - 1) / SH + 1, OUT_W = (WIDTH + 2 * PW - DW * (KW - 1) - 1) / SW + 1;
    static void columns(const Real *image, Real *to) {
        for (int c = 0; c < CHANNELS; ++c)
            for (int r = 0; r < KH; ++r)
                for (int q = 0; q < KW; ++q)
                    for (int i = 0; i < OUT_H; ++i) {
                        const int y = i * SH + r * DH - PH;
                        if (y < 0 || y >= H) {
                            memset(to, 0, OUT_W * sizeof(Real));
                        } else {
                            const Real *line = image + (c * H + y) * WIDTH + q * DW - PW;
                            for (int j = 0; j < OUT_W; ++j) {
                                const int x = j * SW + q * DW - PW;
                                to[j] = x >= 0 && x < WIDTH ? line[j * SW] : (Real)0;
                            }
                        }
                        to += OUT_W;
                    }
    }
    static void back(const Real *from, Real *image) {
        memset(image, 0, CHANNELS * H * WIDTH * sizeof(Real));
        for (int c = 0; c < CHANNELS; ++c)
            for (int r = 0; r < KH; ++r)
                for (int q = 0; q < KW; ++q)
                    for (int i = 0; i < OUT_H; ++i) {
                        const int y = i * SH + r * DH - PH;
                        if (y >= 0 && y < H) {
                            Real *line = image + (c * H + y) * WIDTH + q * DW - PW;
                            for (int j = 0; j < OUT_W; ++j) {
                                const int x = j * SW + q * DW - PW;
                                if (x >= 0 && x < WIDTH) line[j * SW] += from[j];
                            }
                        }
                        from += OUT_W;
                    }
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
