"""All that is fast and hard to read: below the layers, never needed for what they mean."""
