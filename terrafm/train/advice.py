"""What to change where a run collapses or is held up, in words; without torch, for reports."""

ALARMS = {
    "uniform_teacher": "the teacher's entropy is at ln K: every image gets the uniform "
    "distribution. Lower loss.teacher_temp (and loss.warmup_teacher_temp), or optim.base_lr",
    "one_prototype": "the teacher's entropy is near 0: its images fall onto one prototype. "
    "Raise loss.teacher_temp, lower loss.center_momentum so that centers follow faster, raise "
    "loss.alpha towards 1, or lower optim.base_lr",
    "few_prototypes": "the teacher sends all images to a few prototypes. The loss falls all the "
    "same, for a few groups are easy to tell apart. Raise loss.teacher_temp and "
    "loss.warmup_teacher_temp (0.07 where 0.04 collapses), lower optim.base_lr, or raise "
    "train.global_batch",
    "falling_perplexity": "images that had prototypes of their own have lost them. Lower "
    "optim.base_lr, raise optim.teacher_momentum or loss.teacher_temp",
    "loss_at_chance": "the loss is at ln K: the student tells no image from another. Lower "
    "optim.base_lr, lengthen optim.warmup_epochs, or lower loss.teacher_temp",
    "falling_rank": "the teacher's features fall onto few directions. Lower optim.base_lr, raise "
    "optim.teacher_momentum or head.bottleneck_dim, or raise loss.alpha towards 1",
}
"""Name of an alarm -> what it means and what to change."""

BOTTLENECKS = {
    "data": "waiting for data. Add CPUs to the cluster (all that train.cpus_per_worker leaves "
    "read and crop), set data.cache_dir for a remote dataset, or lower data.local_crops",
    "prepare": "copying and normalising batches. Set data.crop_on=workers where crops are cut on "
    "the device, or raise train.micro_batch",
    "optimizer": "reducing gradients and updating. Raise train.global_batch, lower "
    "train.zero_stage where memory allows, or use fewer workers or a faster network",
    "checkpoint": "saving. Raise train.checkpoint_every, or put --output on faster storage",
    "other": "outside of the step. Raise train.log_every, turn train.audit_samples off",
}
"""Share of the time that can hold a run up -> what it is and what to change."""
