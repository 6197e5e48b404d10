// Random vocabularies and texts for the encoder of csrc/text, to be built with sanitizers.
//
//   text SEED VOCABULARIES
//
// Vocabularies are what a stranger's file may hold: any piece may be of any kind, be empty or twice
// there, or be missing, U+2581 included. Texts are spaces for a good part.

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../text/bpe.h"

namespace {

using vila_mc::Encoder;

std::mt19937 generator;

size_t below(size_t end) { return generator() % end; }

std::string random_text(size_t most, const std::vector<std::string>& alphabet) {
    std::string text;
    for (size_t left = below(most + 1); left > 0; --left)
        text += below(2) ? " " : alphabet[below(alphabet.size())];
    return text;
}

Encoder random_encoder(const std::vector<std::string>& alphabet) {
    std::vector<std::string> pieces;
    std::vector<float> scores;
    std::vector<bool> is_normal;
    const size_t rare = below(4);  // kinds other than a normal piece
    const auto add = [&](const std::string& piece) {
        pieces.push_back(piece);
        scores.push_back(below(50) ? -float(below(100)) : std::numeric_limits<float>::quiet_NaN());
        is_normal.push_back(below(4) >= rare);
    };
    for (const std::string& character : alphabet)
        if (below(3)) add(character);
    for (size_t left = below(60); left > 0; --left) {
        std::string piece;
        for (size_t size = below(6); size > 0; --size) piece += alphabet[below(alphabet.size())];
        add(piece);
    }
    std::vector<int32_t> byte_ids(256);
    for (int32_t& id : byte_ids) id = int32_t(below(1000));
    return {pieces, scores, is_normal, byte_ids};
}

void encode_exactly(Encoder& encoder, const std::string& text) {
    const size_t most = encoder.most_ids(text);
    // To the byte, so that a sanitizer sees one id too many.
    const auto ids = std::make_unique<int32_t[]>(most + vila_mc::kMostIds);
    const std::unique_ptr<char[]> exact(new char[text.size()]);
    std::copy(text.begin(), text.end(), exact.get());
    const int32_t* end = encoder.encode({exact.get(), text.size()}, ids.get());
    if (size_t(end - ids.get()) > most) {
        std::fprintf(stderr, "%zu ids where %zu are the most\n", size_t(end - ids.get()), most);
        std::exit(1);
    }
}

}  // namespace

int main(int, char** arguments) {
    generator.seed(unsigned(std::atoi(arguments[1])));
    const std::vector<std::string> alphabet = {
        "\xe2\x96\x81", " ", "a", "b", "c", "\xc3\xa9", "\xe2\x82\xac", "\xf0\x9f\x98\x80", "\n"};
    for (int left = std::atoi(arguments[2]); left > 0; --left) {
        Encoder encoder = random_encoder(alphabet);
        for (const size_t most : {0, 1, 5, 8, 20, 30, 60, 200, 2000})
            for (int time = 0; time < 3; ++time) {
                encode_exactly(encoder, random_text(most, alphabet));
                encode_exactly(encoder, std::string(below(most + 1), ' '));
            }
    }
    return 0;
}
