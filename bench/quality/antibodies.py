"""AntiBERTy: a masked language model of antibodies, the second real text-like network that a package carries.

Weights from ``antiberty`` (Ruffolo, Gray, Sulam 2021; MIT): BERT of 8 layers, 512 wide, whose words are the
twenty amino acids. It runs in the same class as MiniLM. Judged on the variable domains of antibodies that are
medicines, as they are published: calibrated on four of human sequence, measured on two of human and two of
mouse sequence.
"""

import importlib.util
from pathlib import Path

import minilm
import torch
import torch.nn.functional as F
from torch import nn

_LETTERS = "ACDEFGHIKLMNPQRSTVWY"
_CLS, _SEP, _MASK, FIRST = 2, 3, 4, 5
LENGTH = 118
"""Residues of a sequence that is made up: what a variable domain has, about."""

KNOWN = {
    "trastuzumab": (
        "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYW"
        "GQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    ),
    "adalimumab": (
        "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDY"
        "WGQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
    ),
    "bevacizumab": (
        "EVQLVESGGGLVQPGGSLRLSCAASGYTFTNYGMNWVRQAPGKGLEWVGWINTYTGEPTYAADFKRRFTFSLDTSKSTAYLQMNSLRAEDTAVYYCAKYPHYYGSSHWYF"
        "DVWGQGTLVTVSS",
        "DIQMTQSPSSLSASVGDRVTITCSASQDISNYLNWYQQKPGKAPKVLIYFTSSLHSGVPSRFSGSGSGTDFTLTISSLQPEDFATYYCQQYSTVPWTFGQGTKVEIK",
    ),
    "ipilimumab": (
        "QVQLVESGGGVVQPGRSLRLSCAASGFTFSSYTMHWVRQAPGKGLEWVTFISYDGNNKYYADSVKGRFTISRDNSKNTLYLQMNSLRAEDTAIYYCARTGWLGPFDYWGQ"
        "GTLVTVSS",
        "EIVLTQSPGTLSLSPGERATLSCRASQSVGSSYLAWYQQKPGQAPRLLIYGAFSRATGIPDRFSGSGSGTDFTLTISRLEPEDFAVYYCQQYGSSPWTFGQGTKVEIK",
    ),
}
HUMAN = {
    "nivolumab": (
        "QVQLVESGGGVVQPGRSLRLDCKASGITFSNSGMHWVRQAPGKGLEWVAVIWYDGSKRYYADSVKGRFTISRDNSKNTLFLQMNSLRAEDTAVYYCATNDDYWGQGTLVT"
        "VSS",
        "EIVLTQSPATLSLSPGERATLSCRASQSVSSYLAWYQQKPGQAPRLLIYDASNRATGIPARFSGSGSGTDFTLTISSLEPEDFAVYYCQQSSNWPRTFGQGTKVEIK",
    ),
    "pembrolizumab": (
        "QVQLVQSGVEVKKPGASVKVSCKASGYTFTNYYMYWVRQAPGQGLEWMGGINPSNGGTNFNEKFKNRVTLTTDSSTTTAYMELKSLQFDDTAVYYCARRDYRFDMGFDYW"
        "GQGTTVTVSS",
        "EIVLTQSPATLSLSPGERATLSCRASKGVSTSGYSYLHWYQQKPGQAPRLLIYLASYLESGVPARFSGSGSGTDFTLTISSLEPEDFAVYYCQHSRDLPLTFGGGTKVEIK",
    ),
}
MOUSE = {
    "rituximab": (
        "QVQLQQPGAELVKPGASVKMSCKASGYTFTSYNMHWVKQTPGRGLEWIGAIYPGNGDTSYNQKFKGKATLTADKSSSTAYMQLSSLTSEDSAVYYCARSTYYGGDWYFNV"
        "WGAGTTVTVSA",
        "QIVLSQSPAILSASPGEKVTMTCRASSSVSYIHWFQQKPGSSPKPWIYATSNLASGVPVRFSGSGSGTSYSLTISRVEAEDAATYYCQQWTSNPPTFGGGTKLEIK",
    ),
    "cetuximab": (
        "QVQLKQSGPGLVQPSQSLSITCTVSGFSLTNYGVHWVRQSPGKGLEWLGVIWSGGNTDYNTPFTSRLSINKDNSKSQVFFKMNSLQSNDTAIYYCARALTYYDYEFAYWG"
        "QGTLVTVSA",
        "DILLTQSPVILSVSPGERVSFSCRASQSIGTNIHWYQQRTNGSPRLLIKYASESISGIPSRFSGSGSGTDFTLSINSVESEDIADYYCQQNNNWPTTFGAGTKLELK",
    ),
}


class AntiBERTy(minilm.MiniLM):
    """Token ids [B, T] and mask -> hidden states [B, T, 512]; `logits` guesses masked residues from them."""

    def __init__(self) -> None:
        super().__init__(width=512, inner=2048, heads=8, depth=8, words=25)
        self.guess, self.guess_norm = nn.Linear(512, 512), nn.LayerNorm(512, eps=1e-12)
        self.letters = nn.Linear(512, 25)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.hidden(ids, mask)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the log odds of the 25 words at each place."""
        return self.letters(self.guess_norm(F.gelu(self.guess(hidden))))


_HEAD = (
    ("cls.predictions.transform.dense", "guess"),
    ("cls.predictions.transform.LayerNorm", "guess_norm"),
    ("cls.predictions.decoder", "letters"),
)


def load() -> AntiBERTy:
    """Return the model in float32, in eval mode; ModuleNotFoundError says what to install."""
    spec = importlib.util.find_spec("antiberty")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("this table needs: pip install --no-deps antiberty==0.1.3")
    folder = Path(spec.origin).parent / "trained_models" / "AntiBERTy_md_smooth"
    state = torch.load(folder / "pytorch_model.bin", "cpu", weights_only=True)
    for old, new in _HEAD:
        state = {n.replace(old, new): t for n, t in state.items()}
    model = AntiBERTy()
    model.load_state_dict(minilm.renamed(state, model.state_dict()))
    return model.eval()


def batches(antibodies: dict[str, tuple[str, str]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Return each sequence as a batch of its own, so that none is padded."""
    found = []
    for sequence in (s for pair in antibodies.values() for s in pair):
        ids = torch.tensor([[_CLS, *(FIRST + _LETTERS.index(c) for c in sequence), _SEP]])
        found.append((ids, torch.ones_like(ids, dtype=torch.bool)))
    return found


def random_ids(count: int, g: torch.Generator) -> torch.Tensor:
    """Draw sequences of residues, each as likely as any other: ids [count, LENGTH + 2]."""
    ids = torch.randint(FIRST, FIRST + len(_LETTERS), (count, LENGTH), generator=g)
    return F.pad(F.pad(ids, (1, 0), value=_CLS), (0, 1), value=_SEP)


def sampled_ids(model: AntiBERTy, count: int, g: torch.Generator, at_once: int = 12) -> torch.Tensor:
    """Have the model write sequences: all masked at first, then filled in random order, `at_once` a step."""
    ids = F.pad(F.pad(torch.full((count, LENGTH), _MASK), (1, 0), value=_CLS), (0, 1), value=_SEP)
    order = torch.rand(count, LENGTH, generator=g).argsort(1) + 1
    for places in order.split(at_once, 1):
        with torch.no_grad():
            odds = model.logits(model(ids, torch.ones_like(ids, dtype=torch.bool)))
        odds = odds[torch.arange(count)[:, None], places, FIRST:]
        drawn = torch.multinomial(odds.softmax(-1).flatten(0, 1), 1, generator=g).view(count, -1)
        ids.scatter_(1, places, FIRST + drawn)
    return ids
