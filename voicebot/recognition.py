"""What may be asked of Deepgram's recogniser, and what its two interfaces take of it.

`nova-…` and older models are spoken to by v1 (`deepgram.py`), `flux-…` by v2 (`flux.py`). The
interfaces share no parameter but the keyterms.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: The widest that v2 takes, by Deepgram's SDK; its pages differ in both upper ends of a range.
EOT_THRESHOLD: Final = (0.5, 1.0)
EAGER_EOT_THRESHOLD: Final = (0.3, 0.9)
EOT_TIMEOUT_MS: Final = (500, 60_000)
UTTERANCE_END_MS: Final = (1_000, 5_000)
FLUX_KEYTERMS: Final = 100  # more are refused with 400
# A word is a token at least, so this lets nothing pass that v1 would take.
NOVA_KEYTERM_WORDS: Final = 500


@dataclass(frozen=True, slots=True)
class Recognition:
    """How Deepgram recognises. Units: milliseconds; thresholds are probabilities."""

    # Names and words of the business, which no model expects. nova-3 and Flux take them.
    keyterms: tuple[str, ...] = ()

    # v1.
    endpointing_ms: int = 300  # Deepgram's advice for conversation; its default of 10 cuts in
    utterance_end_ms: int = 1_000  # the least it takes, and a backstop only

    # Flux. How sure it must be that the caller has finished: its own default; less cuts in.
    eot_threshold: float = 0.7
    # And that thinking may begin. Unset: not before that, for where Flux is sure 0.1 s later it
    # gains 25 ms, and most pauses cost a request for nothing (`bench.hearing --only flux`).
    eager_eot_threshold: float | None = None
    # Silence that ends a turn it is not sure of; its own 5,000 would outlast the patience of the
    # call (`provider_silence_ms`), and who says nothing for so long waits for the bot.
    eot_timeout_ms: int = 2_500

    def problems(self, model: str, language: str) -> list[tuple[str, str]]:
        """Return what is wrong, each with the name of the setting; "" for the language."""
        found = [
            (name, f"must be from {least:g} to {most:g}")
            for name, (least, most) in (
                ("utterance_end_ms", UTTERANCE_END_MS),
                ("eot_threshold", EOT_THRESHOLD),
                ("eager_eot_threshold", EAGER_EOT_THRESHOLD),
                ("eot_timeout_ms", EOT_TIMEOUT_MS),
            )
            if (value := getattr(self, name)) is not None and not least <= value <= most
        ]
        eager = self.eager_eot_threshold
        if eager is not None and eager > self.eot_threshold:
            found.append(("eager_eot_threshold", "must not be above eot_threshold"))
        words = sum(len(term.split()) for term in self.keyterms)
        if by_flux(model):
            if len(self.keyterms) > FLUX_KEYTERMS:
                found.append(("keyterms", f"Flux takes {FLUX_KEYTERMS}, not {len(self.keyterms)}"))
            if model.endswith("-en") and language.lower().partition("-")[0] != "en":
                found.append(("", f"{model} hears English only; flux-general-multi hears more"))
        elif self.keyterms and not model.startswith("nova-3"):
            found.append(("keyterms", f"{model} takes none; nova-3 and flux-… do"))
        elif words > NOVA_KEYTERM_WORDS:
            found.append(("keyterms", f"{words} words; {model} takes {NOVA_KEYTERM_WORDS} tokens"))
        return found


DEFAULT: Final = Recognition()


def by_flux(model: str) -> bool:
    """Return whether a model is spoken to by v2."""
    return model.startswith("flux-")
