"""12 epochs with AdamW, as released for Mask R-CNN 1x."""

_base_ = ['mmdet::_base_/schedules/schedule_1x.py', './adamw.py']

optim_wrapper = dict(_delete_=True, **_base_.adamw)
auto_scale_lr = dict(enable=True, base_batch_size=16)
