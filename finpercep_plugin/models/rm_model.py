"""Train FinPercep-RM in its stages on FGR triplets (paper Eq. 5-8; METHOD.md §2)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Mapping

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from finpercep_plugin.archs.clip_encoder import SmallViT
from finpercep_plugin.archs.finpercep_rm_arch import FinPercepRM
from finpercep_plugin.config import arguments, build, check_file, collect, parse
from finpercep_plugin.data.batches import to_floats
from finpercep_plugin.generators.checkpoint import write_weights
from finpercep_plugin.metrics.rm_metrics import map_sums, order_accuracy, summarise_maps
from finpercep_plugin.models.base_model import FinPercepModel
from finpercep_plugin.models.options import OptimOptions, TrainOptions, ValOptions
from finpercep_plugin.models.panels import map_picture, picture
from finpercep_plugin.registry import LOSSES, MODELS
from finpercep_plugin.visual import grid

__all__ = ['FinPercepRMModel', 'RMTrainOptions', 'check', 'grown', 'load_or_grow']

LOSS_KEYS = ('map_opt', 'rank_opt', 'align_opt')


@dataclasses.dataclass(frozen=True)
class RMOptimOptions(OptimOptions):
    """`train.optim_g`; `lr_encoder` is for whatever trains in the encoder, null: `lr`."""

    lr_encoder: float | None = None


@dataclasses.dataclass(frozen=True)
class RMTrainOptions(TrainOptions):
    """`train:` of this model.

    Attributes:
        map_opt, rank_opt, align_opt: the three losses, `type:` and options; the first and last have no use at stage 0.
        gt_map: add gt, whose map is 0, to L_map.
    """

    optim_g: RMOptimOptions = RMOptimOptions()
    map_opt: dict[str, Any] | None = None
    rank_opt: dict[str, Any] | None = None
    align_opt: dict[str, Any] | None = None
    gt_map: bool = True


def check(opt: Mapping[str, Any]) -> list[str]:
    """What is wrong with the model's sections, one line a problem."""
    section = opt.get('network_g') or {}
    if not isinstance(section, Mapping):
        return [f'$.network_g: expected a section (mapping), got {section!r:.80}']
    network = {k: v for k, v in section.items() if k != 'type'}
    train, path = opt.get('train') or {}, opt.get('path', {}).get('pretrain_network_g')
    steps = [lambda: arguments(FinPercepRM, network, '$.network_g'), lambda: parse(ValOptions, opt.get('val'), '$.val')]
    if isinstance(network.get('vit'), Mapping):
        steps.append(lambda: parse(SmallViT, network['vit'], '$.network_g.vit'))
    training = opt.get('is_train', True)
    if training:
        steps.append(lambda: parse(RMTrainOptions, train, '$.train'))
        for key in LOSS_KEYS:
            if isinstance(train.get(key), Mapping):
                steps.append(lambda key=key: build(LOSSES, train[key], f'$.train.{key}'))
    if path and not opt['path'].get('resume_state'):
        steps.append(lambda: check_file(path, '$.path.pretrain_network_g', 'the reward model to start from'))
    problems = collect(*steps)
    if section.get('type') != 'FinPercepRM':
        problems.append(f'$.network_g.type: expected FinPercepRM, got {section.get("type")!r}')
    if not training and not path:
        problems.append('$.path.pretrain_network_g: missing; expected the file of the reward model to test')
    if training and train.get('parallel') == 'fsdp':
        problems.append('$.train.parallel: fsdp shards generators; a reward model is small enough for ddp')
    useful = (
        [k for k in LOSS_KEYS if train.get(k)]
        if network.get('stage', 2)
        else [k for k in ('rank_opt',) if train.get(k)]
    )
    if training and not useful:
        problems.append(
            f'$.train: no loss; expected rank_opt{", map_opt or align_opt" if network.get("stage", 2) else ""}'
        )
    return problems


def load_or_grow(network: Mapping[str, Any], path: str | None) -> FinPercepRM:
    """The reward model of a `network_g:` section; from the file of an earlier stage, loaded strictly and grown to `stage`.

    Raises:
        ValueError: the file is of a later stage, or does not fit the section.
        FileNotFoundError: no such file.
    """
    if path is None:
        options = {k: v for k, v in network.items() if k != 'type'}
        return FinPercepRM(**arguments(FinPercepRM, options, '$.network_g'))
    return grown(FinPercepRM.from_file(path), network, path)


def grown(old: FinPercepRM, network: Mapping[str, Any], source: str) -> FinPercepRM:
    """The reward model of a `network_g:` section that computes what `old`, of its stage or an earlier one, does.

    Args:
        old: is left as it is.
        network: the section.
        source: where `old` comes from, for messages.

    Raises:
        ValueError: `old` is of a later stage, or does not fit the section.
    """
    options = {k: v for k, v in network.items() if k != 'type'}
    stage = options.get('stage', 2)
    if old.stage > stage:
        raise ValueError(f'{source} holds an RM_{old.stage}; it cannot become the RM_{stage} of $.network_g.stage')
    model = FinPercepRM(**arguments(FinPercepRM, {**options, 'stage': old.stage, 'pretrained': None}, '$.network_g'))
    # What a later stage adds may be chosen anew; everything that is there already must be as it was trained.
    free = {0: set(model.arch) - {'backbone', 'layers', 'vit'}, 1: {'encoder', 'adapter_width'}, 2: set()}[old.stage]
    other = {k: (v, model.arch[k]) for k, v in old.arch.items() if k not in free and _plain(v) != _plain(model.arch[k])}
    if other:
        told = '; '.join(f'{k}: {before} in the file, {now} in $.network_g' for k, (before, now) in other.items())
        raise ValueError(f'{source} does not fit $.network_g: {told}')
    model.load_state_dict(old.state_dict())
    for _ in range(old.stage, stage):
        model.grow()
    return model


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@MODELS.register('FinPercepRMModel')
class FinPercepRMModel(FinPercepModel):
    """BasicSR model: `network_g` is a FinPercepRM, started from `path.pretrain_network_g` (the file of the stage before) or from scratch."""

    def __init__(self, opt: dict[str, Any]):
        super().__init__(opt)
        torch.manual_seed(opt.get('manual_seed') or 0)
        self.net_g: FinPercepRM = load_or_grow(opt['network_g'], opt['path'].get('pretrain_network_g')).to(self.device)
        if self.is_train:
            settings = parse(RMTrainOptions, opt['train'], '$.train')
            self.criteria = {
                name: build(LOSSES, section, f'$.train.{name}_opt')
                for name in ('map', 'rank', 'align')
                if (section := getattr(settings, f'{name}_opt')) is not None
            }
            rates = {} if settings.optim_g.lr_encoder is None else {'encoder': settings.optim_g.lr_encoder}
            self.init_training(settings, self.net_g.param_groups(), rates)

    def feed_data(self, data: dict[str, Any]) -> None:
        """FGR batch: sr, syn, gt (B, 3, H, W) in [0, 1]; map and mask (B, 1, H, W). Or uint8, see `to_floats`."""
        self.data = to_floats(data, ('sr', 'syn', 'gt', 'map', 'mask'), self.device)

    def losses(self, current_iter: int) -> tuple[Tensor, dict[str, Tensor]]:
        """L_map, L_rank, L_align and their parts; one pass over sr, syn and gt together."""
        self.net_g.train()
        data = self.data
        score, degradation, base = self.net_g.predict(torch.cat([data['sr'], data['syn'], data['gt']]))
        s_sr, s_syn, s_gt = score.chunk(3)
        _, m_syn, m_gt = degradation.chunk(3)
        terms: dict[str, Tensor] = {}
        if 'map' in self.criteria and self.net_g.stage:
            terms['l_map'] = self.criteria['map'](m_syn, data['map'])
            if self.settings.gt_map:
                terms['l_map_gt'] = self.criteria['map'](m_gt, torch.zeros_like(m_gt))
        if 'rank' in self.criteria:
            terms['l_rank'] = self.criteria['rank'](s_sr, s_syn, s_gt)
        if 'align' in self.criteria and self.net_g.stage:
            terms['l_align'] = self.criteria['align'](s_gt, base.chunk(3)[2].detach())
        total = torch.stack(list(terms.values())).sum()
        terms['score_sr'], terms['score_syn'], terms['score_gt'] = s_sr.mean(), s_syn.mean(), s_gt.mean()
        terms['score_std'] = score.detach().std()
        terms['map_mean'] = m_syn.mean()
        return total, terms

    def export(self, path: Path) -> None:
        write_weights(self.net_g.file(), path)

    @torch.no_grad()
    def validation(
        self, dataloader: DataLoader, current_iter: int | str, tb_logger: Any, save_img: bool = False
    ) -> None:
        """Order accuracy, and the map against its truth, on FGR triplets (`rm_metrics`), sharded over ranks."""
        self.net_g.eval()
        dataset, name = dataloader.dataset, dataloader.dataset.opt['name']
        sums, orders, panel = torch.zeros(11, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), []
        wanted = parse(ValOptions, self.opt.get('val') or {}, '$.val').panel
        with self.ema_weights():
            for index in self.shard(dataset):
                item = dataset[index]
                images = torch.stack([item['sr'], item['syn'], item['gt']]).to(self.device)
                score, degradation = (t.cpu() for t in self.net_g(images))
                pairs = order_accuracy(score[0:1], score[1:2]), order_accuracy(score[1:2], score[2:3])
                orders += torch.tensor([1.0, *pairs], dtype=torch.float64)
                sums += map_sums(degradation[1:2], item['map'][None], item['mask'][None])
                if len(panel) < wanted:
                    panel.append(
                        [
                            picture(item['gt']),
                            picture(item['syn']),
                            map_picture(degradation[1]),
                            map_picture(item['map']),
                        ]
                    )
        count, below_syn, below_gt = self.reduce_sum(orders).tolist()
        results = {'order_sr_syn': below_syn / count, 'order_syn_gt': below_gt / count}
        if self.net_g.stage:
            results |= summarise_maps(self.reduce_sum(sums))
        self.report(name, results, current_iter, tb_logger)
        if panel:
            self.report_panel(name, grid(panel), current_iter, tb_logger, save_img)
