// Several iterations of TV-L1 on one tile of a picture, by a block of a GPU's threads; see tvl1.cu.
#pragma once

#include "tvl1_device.h"
#include "tvl1_pixel.h"

namespace {

using namespace tvl1;

// Iterations of a launch: where a tile has a border, and where it is the whole picture. Each more
// makes the border wider: at 5 a tile of 64 x 32 keeps 54 x 22.
constexpr int kDepth = 5, kWholeDepth = 15, kMostDepth = 15;
// Iterations of one graph; both pyramids' solvers work in multiples of it.
constexpr int kChunk = 30;
static_assert(Paper::kInner % kChunk == 0 && OpenCv4::kInner == kChunk, "medians begin a chunk");
// What iterations change, twice, and what they read of the last warp.
enum State { kU1, kU2, kP11, kP12, kP21, kP22, kStates };
enum Plane { kWx = 2 * kStates, kWy, kInverse, kRho, kTouched, kI1x = kTouched, kI1y, kPlanes };

struct Pair {
  Watch watch;
  int iteration;   // of this warp: so many are done
  int depth;       // iterations of the next launch
  int looks_from;  // the first of them whose change may be looked at
  int redo;        // the next launch repeats the last one, to where the pair came to rest
  int side;        // which copy of the state is the newest
  // By iteration of a launch, in units of 2^-28, so that threads may add them up in any order.
  unsigned long long change[kMostDepth];
};
constexpr float kUnits = 268435456.0f, kMostChange = 1024.0f;

PIXEL unsigned long long whole(float change) {
  return static_cast<unsigned long long>(clamp(change, 0.0f, kMostChange) * kUnits);
}

// The pairs that go together. Planes have room for the largest scale's pictures.
struct Batch {
  float* planes;
  long room;  // numbers of a plane
  Pair* pairs;
  int* places;  // numbers of the pairs at work, in order, and how many those are
  int* active;
  unsigned long long* pixels;  // updates of a pixel, for the bench
  double tolerance;
  int depth;

  PIXEL float* plane(int number) const { return planes + number * room; }
  PIXEL float* state(int side, int number) const { return plane(side * kStates + number); }
};

// -- a tile -----------------------------------------------------------------------------------------

// What a block's threads tell each other: the flow to the left and above, the dual to the right and
// below.
struct Tile {
  float u1[kTile], u2[kTile], p11[kTile], p12[kTile], p21[kTile], p22[kTile];
  unsigned long long change[kMostDepth];
};

// A pixel as its thread has it. The rest of it is in the tile: more do not fit into 64 registers.
struct Cell {
  float wx, wy, inverse, rho, u1, u2, p11, p21;
};

// Where a tile lies in the picture.
struct Window {
  int rows, cols, halo, top, left;

  PIXEL Window(int rows, int cols, int halo, int tile_y, int tile_x)
      : rows(rows), cols(cols), halo(halo), top(tile_y * (kTileRows - 2 * halo) - halo),
        left(tile_x * (kTileCols - 2 * halo) - halo) {}
  PIXEL bool holds(int row, int col) const {
    const int y = top + row, x = left + col;
    return y >= 0 && y < rows && x >= 0 && x < cols;
  }
  PIXEL long at(int row, int col) const {
    return static_cast<long>(top + row) * cols + left + col;
  }
  // Rows between one of them and what the tile is there for.
  PIXEL int outside(int row) const {
    const int last = kTileRows - halo - 1;
    return row < halo ? halo - row : (row > last ? row - last : 0);
  }
  PIXEL bool keeps(int row, int col) const {
    return outside(row) == 0 && col >= halo && col < kTileCols - halo && holds(row, col);
  }
};

PIXEL int row_in_tile(int thread, int r) { return r * kThreadRows + thread / kTileCols; }
PIXEL int col_in_tile(int thread) { return thread % kTileCols; }

DEVICE void load_cells(const Window& w, const Batch& b, int side, long start, int t, Cell* cells,
                      Tile& tile) {
  if (t < kMostDepth) tile.change[t] = 0;
  const int col = col_in_tile(t);
  UNROLL
  for (int r = 0; r < kCells; ++r) {
    const int row = row_in_tile(t, r);
    if (!w.holds(row, col)) continue;
    const long i = start + w.at(row, col);
    const int at = row * kTileCols + col;
    Cell& c = cells[r];
    c = {b.plane(kWx)[i], b.plane(kWy)[i], b.plane(kInverse)[i], b.plane(kRho)[i],
         b.state(side, kU1)[i], b.state(side, kU2)[i], b.state(side, kP11)[i],
         b.state(side, kP21)[i]};
    tile.p11[at] = c.p11;
    tile.p12[at] = b.state(side, kP12)[i];
    tile.p21[at] = c.p21;
    tile.p22[at] = b.state(side, kP22)[i];
  }
}

// One thread's primal updates. Rows further out than `reach` cannot reach what is kept any more.
// Beyond the picture p is zero; beyond the tile it is anything.
DEVICE void primal_cells(const Window& w, int reach, int t, Cell* cells, Tile& tile,
                         unsigned long long* sum) {
  const int col = col_in_tile(t);
  unsigned long long change = 0;
  UNROLL
  for (int r = 0; r < kCells; ++r) {
    const int row = row_in_tile(t, r), at = row * kTileCols + col;
    if (w.outside(row) > reach || !w.holds(row, col)) continue;
    Cell& c = cells[r];
    const bool has_left = col > 0 && w.left + col > 0, has_above = row > 0 && w.top + row > 0;
    const float left1 = has_left ? tile.p11[at - 1] : 0.0f;
    const float left2 = has_left ? tile.p21[at - 1] : 0.0f;
    const float above1 = has_above ? tile.p12[at - kTileCols] : 0.0f;
    const float above2 = has_above ? tile.p22[at - kTileCols] : 0.0f;
    const float div1 = c.p11 - left1 + (tile.p12[at] - above1);
    const float div2 = c.p21 - left2 + (tile.p22[at] - above2);
    const float squares = primal(c.wx, c.wy, c.inverse, c.rho, div1, div2, &c.u1, &c.u2);
    tile.u1[at] = c.u1;
    tile.u2[at] = c.u2;
    if (sum && w.keeps(row, col)) change += whole(squares);
  }
  if (sum) add_up(sum, change);
}

// One thread's dual updates. At the picture's end a difference is zero.
DEVICE void dual_cells(const Window& w, int reach, int t, Cell* cells, Tile& tile) {
  const int col = col_in_tile(t);
  UNROLL
  for (int r = 0; r < kCells; ++r) {
    const int row = row_in_tile(t, r), at = row * kTileCols + col;
    if (w.outside(row) > reach || !w.holds(row, col)) continue;
    Cell& c = cells[r];
    const bool has_right = col + 1 < kTileCols && w.left + col + 1 < w.cols;
    const bool has_below = row + 1 < kTileRows && w.top + row + 1 < w.rows;
    const int right = has_right ? at + 1 : at, below = has_below ? at + kTileCols : at;
    dual(tile.u1[right] - c.u1, tile.u1[below] - c.u1, tile.u2[right] - c.u2,
         tile.u2[below] - c.u2, &c.p11, tile.p12 + at, &c.p21, tile.p22 + at);
    tile.p11[at] = c.p11;
    tile.p21[at] = c.p21;
  }
}

DEVICE void store_cells(const Window& w, const Batch& b, int side, long start, int t,
                        const Cell* cells, const Tile& tile) {
  const int col = col_in_tile(t);
  UNROLL
  for (int r = 0; r < kCells; ++r) {
    const int row = row_in_tile(t, r);
    if (!w.keeps(row, col)) continue;
    const long i = start + w.at(row, col);
    const int at = row * kTileCols + col;
    const Cell& c = cells[r];
    b.state(side, kU1)[i] = c.u1;
    b.state(side, kU2)[i] = c.u2;
    b.state(side, kP11)[i] = c.p11;
    b.state(side, kP12)[i] = tile.p12[at];
    b.state(side, kP21)[i] = c.p21;
    b.state(side, kP22)[i] = tile.p22[at];
  }
}

// The iterations of a launch on one tile. All threads of a block stay until its end.
TILE_KERNEL iterate(int rows, int cols, int halo, Batch b) {
  TILE_PLACE
  if (slot >= *b.active) return;
  const long area = static_cast<long>(rows) * cols;
  const Pair& before = b.pairs[b.places[slot]];
  if (!before.watch.active) return;
  const int depth = before.depth, looks_from = before.looks_from;
  const Window w(rows, cols, halo, tile_y, tile_x);
  SHARED(Tile, tile)
  CELLS(Cell, cells)
  THREADS(t) load_cells(w, b, before.side, b.places[slot] * area, t, CELLS_OF(cells, t), tile);
  SYNC
  for (int k = 0; k < depth; ++k) {
    unsigned long long* sum = k < looks_from ? nullptr : tile.change + k;
    THREADS(t) primal_cells(w, depth - k, t, CELLS_OF(cells, t), tile, sum);
    SYNC
    THREADS(t) dual_cells(w, depth - k, t, CELLS_OF(cells, t), tile);
    SYNC
  }
  // Read anew: registers are scarce in between.
  const int n = b.places[slot];
  Pair& pair = b.pairs[n];
  THREADS(t) {
    store_cells(w, b, 1 - pair.side, n * area, t, CELLS_OF(cells, t), tile);
    if (t < depth && tile.change[t]) add_to(pair.change + t, tile.change[t]);
  }
}

}  // namespace
