def load_backbone(model, path):
    raise NotImplementedError
