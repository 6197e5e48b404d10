// SentencePiece's byte-pair encoding, word by word, with a memory of words.
//
// SentencePiece merges over a whole text at once. A merge can only join what some piece of the
// vocabulary holds side by side, so wherever no piece holds two neighbouring characters, the text
// falls apart into segments that have nothing to do with each other; words, mostly. The ids of a
// segment are worked out once and remembered. The result is the same, id by id.
//
// No torch and no Python: csrc/text/module.cpp gives it to Python, csrc/fuzz/text.cpp to
// sanitizers.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <queue>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace vila_mc {

inline constexpr char kSpace[] = "\xe2\x96\x81";  // U+2581 stands for a space inside pieces
inline constexpr size_t kRemembered = 1 << 17;    // segments; 8 MB
inline constexpr size_t kLongestRemembered = 22, kMostIds = 8;  // so that one fills a cache line
inline constexpr size_t kLongestText = 1 << 29;                 // so that places in it fit 32 bits
inline constexpr size_t kFewSymbols = 48;  // up to here a plain search beats a heap

inline uint64_t hash_of(std::string_view text) {
    uint64_t hash = 0x9E3779B97F4A7C15ull ^ text.size();
    const char* data = text.data();
    uint64_t word = 0;
    if (text.size() >= 8) {
        for (size_t i = 0; i + 8 < text.size(); i += 8) {
            std::memcpy(&word, data + i, 8);
            hash = (hash ^ word) * 0xff51afd7ed558ccdull;
            hash ^= hash >> 32;
        }
        std::memcpy(&word, data + text.size() - 8, 8);
    } else if (text.size() >= 4) {
        uint32_t first, last;
        std::memcpy(&first, data, 4);
        std::memcpy(&last, data + text.size() - 4, 4);
        word = (uint64_t{first} << 32) | last;
    } else {
        for (unsigned char byte : text) word = (word << 8) | byte;
    }
    hash = (hash ^ word) * 0xc4ceb9fe1a85ec53ull;
    return hash ^ (hash >> 29);
}

// Strings to small numbers; open addressing, never more than half full.
class Table {
  public:
    explicit Table(size_t capacity) {
        size_t size = 16;
        while (size < 2 * capacity) size *= 2;
        slots_.resize(size);
    }

    // The slot of `key`, or the free one where it belongs.
    size_t find(std::string_view key, uint64_t hash) const {
        size_t slot = hash & (slots_.size() - 1);
        while (slots_[slot].value >= 0 && (slots_[slot].hash != hash || view(slots_[slot]) != key))
            slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    int32_t value(size_t slot) const { return slots_[slot].value; }

    void put(size_t slot, std::string_view key, uint64_t hash, int32_t value) {
        slots_[slot] = {hash, static_cast<uint32_t>(bytes_.size()),
                        static_cast<uint32_t>(key.size()), value};
        bytes_.append(key);
    }

  private:
    struct Slot {
        uint64_t hash = 0;
        uint32_t start = 0, size = 0;
        int32_t value = -1;
    };

    std::string_view view(const Slot& slot) const {
        return std::string_view(bytes_).substr(slot.start, slot.size);
    }

    std::vector<Slot> slots_;
    std::string bytes_;
};

inline size_t character_size(unsigned char first) {
    return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

// First byte of a character and its size; both kinds of space are one.
inline unsigned char character_at(std::string_view text, size_t position, size_t* size) {
    const unsigned char first = text[position];
    *size = std::min(character_size(first), text.size() - position);
    return first == 0xe2 && text.compare(position, 3, kSpace) == 0 ? ' ' : first;
}

struct Symbol {
    uint32_t start, size;  // size 0: merged into the one before
    int32_t before, after;
};

// A segment and its ids. The one that comes later takes the place of an earlier one.
struct alignas(64) Remembered {
    uint8_t size = 0, num_ids = 0;
    char text[kLongestRemembered];
    int32_t ids[kMostIds];
};

struct Candidate {
    float score;
    int32_t left, right;
    uint32_t size;
    // The best score first, then the leftmost, as SentencePiece has it.
    bool operator<(const Candidate& other) const {
        return score < other.score || (score == other.score && left > other.left);
    }
};

class Encoder {
  public:
    Encoder(const std::vector<std::string>& pieces, const std::vector<float>& scores,
            const std::vector<bool>& is_normal, const std::vector<int32_t>& byte_ids)
        : pieces_(pieces.size()), scores_(scores), remembered_(kRemembered) {
        if (scores.size() != pieces.size() || is_normal.size() != pieces.size() ||
            byte_ids.size() != 256)
            throw std::invalid_argument(
                "give a score and a kind for every piece, and 256 ids of bytes");
        std::copy_n(byte_ids.begin(), 256, byte_ids_);
        for (size_t id = 0; id < pieces.size(); ++id) {
            if (!is_normal[id]) continue;
            const std::string& piece = pieces[id];
            const uint64_t hash = hash_of(piece);
            const size_t slot = pieces_.find(piece, hash);
            if (pieces_.value(slot) < 0) pieces_.put(slot, piece, hash, static_cast<int32_t>(id));
            note_neighbours(piece);
        }
        const size_t space = pieces_.find(kSpace, hash_of(kSpace));
        ids_of_space_ = pieces_.value(space) < 0 ? 3 : 1;
    }

    // How many ids `encode` may write for a text; it needs room for kMostIds more. A character of
    // the text becomes at most one id per byte of it, but a space that is no piece becomes those of
    // the three bytes of U+2581.
    size_t most_ids(std::string_view text) const {
        if (text.size() > kLongestText)
            throw std::length_error("a text has more than " + std::to_string(kLongestText) +
                                    " bytes; split it");
        const size_t spaces = 1 + std::count(text.begin(), text.end(), ' ');
        return text.size() + 1 + (ids_of_space_ - 1) * spaces;
    }

    // Ids of one text, written to `out`. Returns where they end.
    int32_t* encode(std::string_view text, int32_t* out) {
        if (text.empty()) return out;
        // The space that SentencePiece puts in front.
        scratch_.assign(1, ' ');
        size_t end = segment_end(text, 0, ' ');
        scratch_.append(text.substr(0, end));
        out = encode_segment(scratch_, out);
        while (end < text.size()) {
            const size_t start = end;
            size_t size;
            const unsigned char first = character_at(text, start, &size);
            end = segment_end(text, start + size, first);
            out = encode_segment(text.substr(start, end - start), out);
        }
        return out;
    }

  private:
    // Which pairs of ASCII characters some piece holds side by side.
    void note_neighbours(std::string_view piece) {
        unsigned char before = 0x80;
        for (size_t i = 0; i < piece.size();) {
            size_t size;
            const unsigned char now = character_at(piece, i, &size);
            if (before < 0x80 && now < 0x80) neighbours_[before][now] = true;
            if (before >= 0x80 && i > 0 && now == ' ') spaces_end_words_ = false;
            before = now;
            i += size;
        }
    }

    size_t segment_end(std::string_view text, size_t position, unsigned char before) const {
        for (; position < text.size() && before < 0x80; ++position) {  // most text by far
            const unsigned char now = text[position];
            if (now >= 0x80) break;
            if (!neighbours_[before][now]) return position;
            before = now;
        }
        size_t size;
        for (; position < text.size(); position += size) {
            const unsigned char now = character_at(text, position, &size);
            const bool splits = before < 0x80 ? now < 0x80 && !neighbours_[before][now]
                                              : now == ' ' && spaces_end_words_;
            if (splits) return position;
            before = now;
        }
        return text.size();
    }

    int32_t* encode_segment(std::string_view segment, int32_t* out) {
        if (segment.size() > kLongestRemembered) return merge(segment, out);
        Remembered& slot = remembered_[hash_of(segment) % kRemembered];
        if (slot.size == segment.size() && !std::memcmp(slot.text, segment.data(), slot.size)) {
            std::memcpy(out, slot.ids, sizeof(slot.ids));  // all of them: a fixed size is faster
            return out + slot.num_ids;
        }
        int32_t* end = merge(segment, out);
        const size_t num_ids = end - out;
        if (num_ids <= kMostIds) {
            slot.size = static_cast<uint8_t>(segment.size());
            slot.num_ids = static_cast<uint8_t>(num_ids);
            std::memcpy(slot.text, segment.data(), segment.size());
            std::copy(out, end, slot.ids);
        }
        return end;
    }

    int32_t* merge(std::string_view segment, int32_t* out) {
        split(segment);
        if (symbols_.size() <= kFewSymbols)
            merge_few();
        else
            merge_many();
        for (const Symbol& symbol : symbols_) {
            if (symbol.size == 0) continue;
            const auto piece = std::string_view(text_).substr(symbol.start, symbol.size);
            const int32_t id = pieces_.value(pieces_.find(piece, hash_of(piece)));
            if (id >= 0) {
                *out++ = id;
            } else {
                for (unsigned char byte : piece) *out++ = byte_ids_[byte];
            }
        }
        return out;
    }

    void split(std::string_view segment) {
        text_.clear();
        symbols_.clear();
        for (size_t i = 0; i < segment.size();) {
            size_t size = std::min(character_size(segment[i]), segment.size() - i);
            const auto start = static_cast<uint32_t>(text_.size());
            if (segment[i] == ' ')
                text_.append(kSpace);
            else
                text_.append(segment.substr(i, size));
            const auto index = static_cast<int32_t>(symbols_.size());
            symbols_.push_back(
                {start, static_cast<uint32_t>(text_.size()) - start, index - 1, index + 1});
            i += size;
        }
        symbols_.back().after = -1;
    }

    // Whether two neighbours make a piece, and its score.
    bool joined(int32_t left, int32_t right, Candidate* found) const {
        if (left < 0 || right < 0) return false;
        const uint32_t size = symbols_[left].size + symbols_[right].size;
        const auto piece = std::string_view(text_).substr(symbols_[left].start, size);
        const int32_t id = pieces_.value(pieces_.find(piece, hash_of(piece)));
        if (id < 0) return false;
        *found = {scores_[id], left, right, size};
        return true;
    }

    void join(int32_t left, int32_t right) {
        symbols_[left].size += symbols_[right].size;
        symbols_[left].after = symbols_[right].after;
        if (symbols_[left].after >= 0) symbols_[symbols_[left].after].before = left;
        symbols_[right].size = 0;
    }

    void merge_few() {
        Candidate pairs[kFewSymbols];
        bool is_pair[kFewSymbols] = {};  // of each symbol with the one after it
        const auto count = static_cast<int32_t>(symbols_.size());
        for (int32_t i = 0; i < count; ++i) is_pair[i] = joined(i, symbols_[i].after, &pairs[i]);
        while (true) {
            int32_t best = -1;
            for (int32_t i = 0; i < count; ++i)
                if (is_pair[i] && (best < 0 || pairs[best] < pairs[i])) best = i;
            if (best < 0) return;
            const int32_t right = symbols_[best].after;
            join(best, right);
            is_pair[right] = false;
            is_pair[best] = joined(best, symbols_[best].after, &pairs[best]);
            const int32_t before = symbols_[best].before;
            if (before >= 0) is_pair[before] = joined(before, best, &pairs[before]);
        }
    }

    void merge_many() {
        std::priority_queue<Candidate> agenda;
        Candidate found;
        for (size_t i = 1; i < symbols_.size(); ++i) {
            const auto right = static_cast<int32_t>(i);
            if (joined(right - 1, right, &found)) agenda.push(found);
        }
        while (!agenda.empty()) {
            const Candidate top = agenda.top();
            agenda.pop();
            const Symbol &left = symbols_[top.left], &right = symbols_[top.right];
            if (left.size == 0 || right.size == 0 || left.size + right.size != top.size) continue;
            join(top.left, top.right);
            if (joined(symbols_[top.left].before, top.left, &found)) agenda.push(found);
            if (joined(top.left, symbols_[top.left].after, &found)) agenda.push(found);
        }
    }

    Table pieces_;
    std::vector<float> scores_;
    int32_t byte_ids_[256];
    bool neighbours_[128][128] = {};
    bool spaces_end_words_ = true;
    size_t ids_of_space_ = 1;

    std::vector<Remembered> remembered_;

    std::string scratch_, text_;
    std::vector<Symbol> symbols_;
};

}  // namespace vila_mc
